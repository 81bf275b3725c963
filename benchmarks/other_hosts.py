"""Calculates the efficiency of training on more hosts from stated speeds; nothing here is measured."""

# Sources: https://aws.amazon.com/ec2/instance-types/g4/ and NVIDIA's data sheet of the T4.
NUM_GPUS = 4
NETWORK = 50e9 / 8  # bytes per second between two ml.g4dn.12xlarge instances, in each direction
PCIE = 15.75e9  # bytes per second between GPUs: PCIe 3.0 with 16 lanes, in each direction
FLOPS, FLOPS_16 = 8.1e12, 65e12  # peak of a T4 in 32 bits, and in 16 bits on its tensor cores


def bytes_sent(num_parameters: int, num_processes: int) -> float:
    """Returns the bytes that each process sends per step: a ring all-reduce of 32-bit gradients sends 2 (n - 1) / n."""
    return num_parameters * 4 * 2 * (num_processes - 1) / num_processes


def communication_seconds(num_parameters: int, num_hosts: int) -> float:
    """Returns the communication time of a step: in a ring, the slowest link is the bottleneck."""
    speed = min(NETWORK, PCIE) if num_hosts > 1 else PCIE
    return bytes_sent(num_parameters, num_hosts * NUM_GPUS) / speed


def efficiency(computing_seconds: float, num_parameters: int, num_hosts: int) -> float:
    """Returns the scaling efficiency, from 0 to 1, if computation and communication do not overlap."""
    return computing_seconds / (computing_seconds + communication_seconds(num_parameters, num_hosts))
