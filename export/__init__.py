"""From a checkpoint to the verified bundle that a device loads."""
