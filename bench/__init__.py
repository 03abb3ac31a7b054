"""The benchmarks: they measure, and keep what they measured. Nothing here is installed.

suite/          cases, providers, the gate before the clock, the clock, the levels of pytest bench/
records/        rows and conditions as files of results/; runs of the trainer kept in the repository
report/         records as a page, and as the README's table
oracle/         what is right: float64's answers, flip-free networks, the operations' cases; the tests' too
audit/, tune/   the Triton kernels' machine code counted; the tables that the engines ship
adaptation/     corrupted images, and what adapting to them gains
architectures/  networks of torchvision and timm, each in a process of its own
gpu/            the stages of a visit to a GPU, started by gpu_check.sh
examples, guard, memory, patches, plan, ranks, record, xla    commands of their own
"""
