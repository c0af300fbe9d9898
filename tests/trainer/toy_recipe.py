"""A recipe of seconds, as a user writes one."""

TOML = """
[model]
architecture = "mobilenet"
[front_end]
mels = 32
high_hz = 4000.0
[optimizer]
rho = 0.05
learning_rate = 3e-3
weight_decay = 0.01
batch = 8
epochs = 2
average_decay = 0.9
cycle_loss = 1.0
[data]
crops = "random"
balance = "binary"
draws = 32
folds = 3
members = 2
refit = 1
[augmentation]
cyclic_shift = true
"""

ALONE = TOML.replace("members = 2\nrefit = 1", "members = 1")
"""With one model."""
