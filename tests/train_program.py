"""``python -m subp_dist.train`` as a file, for launchers that take one."""

from subp_dist import train

if __name__ == "__main__":
    train.cli()
