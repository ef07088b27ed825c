"""How fast kdsec is, always as a ratio to something measured in the same run on the same machine.

``python -m benchmarks`` measures everything; ``--only kd_step`` one thing. Seconds depend on the machine and
on what else it does, so ours and the baseline take turns, and the ratio is the median over the turns. Still,
measure on a machine that does nothing else. No download is needed: the images are random bytes in the shape
of CIFAR-10, which cost as much to crop, flip and convolve as real ones.
"""
