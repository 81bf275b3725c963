"""What training on more hosts would give, by calculation from stated speeds. Nothing here is measured."""

# https://aws.amazon.com/ec2/instance-types/g4/ and NVIDIA's data sheet of the T4.
NUM_GPUS = 4
NETWORK = 50e9 / 8  # bytes per second between instances of ml.g4dn.12xlarge, in each direction
PCIE = 15.75e9  # bytes per second between its GPUs: PCIe gen3 with 16 lanes, in each direction
FLOPS, FLOPS_16 = 8.1e12, 65e12  # of a T4 in 32 bits and, by its tensor cores, in 16


def bytes_sent(num_parameters: int, num_processes: int) -> float:
    """By each process per step, for 32-bit gradients: a ring all-reduce sends all but 1/n of them, twice."""
    return num_parameters * 4 * 2 * (num_processes - 1) / num_processes


def communication_seconds(num_parameters: int, num_hosts: int) -> float:
    """Of a step: in a ring, each process sends over the same link all the time, and the slowest link decides."""
    speed = min(NETWORK, PCIE) if num_hosts > 1 else PCIE
    return bytes_sent(num_parameters, num_hosts * NUM_GPUS) / speed


def efficiency(computing_seconds: float, num_parameters: int, num_hosts: int) -> float:
    """Images per second, of as many times those of one GPU, if computing and communication do not overlap."""
    return computing_seconds / (computing_seconds + communication_seconds(num_parameters, num_hosts))
