/* How many threads a parallel region may have. OpenMP ends the process where it cannot create one. */
#ifndef SUBP_TEAM_H
#define SUBP_TEAM_H

/* Returns `wanted`, or as many as the calling thread's team can have where the system refuses to create more. Threads
 * that OpenMP does not keep for it yet are created, and ended, to find out; then OpenMP creates them: once for a team
 * that grows. Not to be called by two threads at a time, which would each count on the same room: under the GIL. From
 * then on OMP_DYNAMIC does not hold for the calling thread. */
int subp_team(int wanted);

/* To be told when OpenMP has let go of the calling thread's team. */
void subp_team_released(void);

#endif
