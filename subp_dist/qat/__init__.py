"""Training with fake quantization: the last epochs of a run learn with the integers that its int8 file holds.

What is trained is the graph that int8 export calibrates, batch norms folded and activations fused, and not torch's own
(PT2E of torchao): so the integers of the training are those of the runtime, and both compute the same bits.
"""
