"""`trainer fit`: corpus -> patient-wise split -> WRS -> SAM(AdamW) -> best epoch by validation patients.

Every epoch ends in one atomic checkpoint, as does a call whose minutes are over in the middle of one. Everything random
is derived from (seed, epoch, position) or kept in the checkpoint; so a run that stopped or was killed goes on with
`resume` to the bit-identical result of one that did not (same machine, same thread count).
"""

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from device.labels import LABELS
from device.model.judgement import abnormal_probability
from device.signal import FrontEnd, raw_window, split
from firmware_config.errors import RespSAMError
from firmware_config.files import FileError, write_atomically
from trainer.corpora.cycle import Corpus
from trainer.corpora.splits import family
from trainer.corpora.stretches import located
from trainer.evaluation.validation import Validation
from trainer.metrics import Float64Array, IntArray, auroc, choose_threshold
from trainer.model.network import Network, network, predict
from trainer.run.folder import (
    CHECKPOINT_FILE,
    EVENTS_FOLDER,
    LOG_FILE,
    METRICS_FILE,
    begun,
    load_tensors,
    prefixed,
    refuse_another,
    save_tensors,
    under,
)
from trainer.run.machine import Machine
from trainer.run.recipe import DataRecipe, OptimizerRecipe, Recipe
from trainer.training.checkpoints import load_initial
from trainer.training.clock import Clock
from trainer.training.crops import TrainingCrops
from trainer.training.sam import SAM, backward_twice, random_state, restore_random_state
from trainer.training.sampler import draw, weights

NORMALISATION_CROPS: Final = 1024
NOWHERE: Final = 1e-12  # weight of a moment outside of a span: its logarithm is still a number
RANK_STEP: Final = 7_919_993  # between the seeds of two processes
TIMED_WINDOWS: Final = 16
MEAN_LOSSES: Final = 50  # micro-batches whose mean loss is shown
Tensors = tuple[Tensor, ...] | list[Tensor]


class FitError(RespSAMError):
    """Training that cannot start or go on."""


class Watcher(Protocol):
    """Shows how training goes; may ignore any call."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None: ...

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None: ...

    def epoch_ended(self, row: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """How far training is; a checkpoint carries it beside its tensors."""

    epochs_done: int = 0
    steps_done: int = 0
    """Of the next epoch, where the last call stopped within it."""
    seconds_spent: float = 0.0
    """On these steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best: tuple[float, float] = (-1.0, -1.0)
    """Score and AUROC of the best epoch."""


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Make the run folder; where the block fails before a checkpoint is there, it is as it was before.

    FitError when it cannot be written.
    """
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    before: set[Path] = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_log(folder, [])
    except (OSError, FileError) as error:
        _remove_new(folder, absent, before)
        reason = getattr(error, "strerror", None) or getattr(error.__cause__, "strerror", error)
        raise FitError(f"{folder}: cannot be written ({reason}); choose another --out") from error
    try:
        yield
    except BaseException:
        if not begun(folder):
            _remove_new(folder, absent, before)
        raise


def _remove_new(folder: Path, absent: Sequence[Path], before: set[Path]) -> None:
    """Remove what a failed run has made: `folder` with those of its parents that were absent, or what is new in it."""
    if absent:
        for path in absent:
            with suppress(OSError):  # a parent that holds something else by now stays
                shutil.rmtree(path) if path == folder else path.rmdir()
        return
    for path in set(folder.iterdir()) - before if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_log(folder: Path, notes: Sequence[str]) -> None:
    """Append the corpus's notes, every left-out recording among them, to the run's log."""
    before = (folder / LOG_FILE).read_text() if (folder / LOG_FILE).exists() else ""
    write_atomically(folder / LOG_FILE, before + "".join(f"{note}\n" for note in notes))


def identity(recipe: Recipe, corpus: Corpus, held_out: Corpus | None, processes: int = 1) -> dict[str, Any]:
    """The facts that a checkpoint must share with the run that resumes it.

    The recipe, every recording with its annotation (one without cycles moves patients between the folds, too), the
    patients held out, and how many processes share a step.
    """
    digest = hashlib.sha256()
    for one in corpus.recordings:
        digest.update(f"{one.name} {one.patient} {one.device} {one.label}\n".encode())
        for cycle in one.cycles:
            digest.update(f"{cycle.start_seconds:.3f} {cycle.end_seconds:.3f} {cycle.label}\n".encode())
    return {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": corpus.name,
        "recordings": digest.hexdigest(),
        "held_out": [] if held_out is None else list(held_out.patients),
        "processes": processes,
    }


def measure_normalisation(crops: TrainingCrops, front_end: FrontEnd, seed: int) -> FrontEnd:
    """The front end with mean and std of the log-mels of about a thousand unaugmented training crops."""
    random = np.random.default_rng((seed, 2))
    chosen = random.choice(len(crops), min(NORMALISATION_CROPS, len(crops)), replace=False)
    total, squares, count = 0.0, 0.0, 0
    for index in chosen:
        cycle = crops.cycles[int(index)]
        crop = crops.crop(cycle, random)
        start, end = crop.start_seconds, crop.end_seconds
        with located(cycle.recording, start, end):
            samples = split(crops.cache.cut(cycle.recording, start, end))[0]
            log_mels = raw_window(samples, front_end).astype(np.float64)
        total, squares, count = total + log_mels.sum(), squares + np.square(log_mels).sum(), count + log_mels.size
    mean = total / count
    return front_end.model_copy(
        update={"mean": round(float(mean), 4), "std": round(float(np.sqrt(squares / count - mean * mean)), 4)}
    )


def learning_rate(recipe: OptimizerRecipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to zero over the whole schedule."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * 0.5 * (1.0 + float(np.cos(np.pi * (step - warmup) / max(total - warmup, 1.0))))


def moving_average(
    decay: float,
) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose horizon grows with the steps taken, up to `decay`.

    At full decay from the first step the average was still the initialisation after an epoch (validation AUROC 0.43).
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, taken: Tensor | int) -> None:
        weight = 1.0 - min(decay, (1.0 + int(taken)) / (10.0 + int(taken)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    return update


def surprise(logits: Float64Array, labels: IntArray) -> float:
    """Mean negative log-likelihood of the labels (n,) under logits (n, classes)."""
    return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))


def soft_targets(classes: Tensor, smoothing: float) -> Tensor:
    """One-hot targets (batch, classes) with `smoothing` spread evenly over all classes."""
    hot = F.one_hot(classes, len(LABELS)).float()
    return hot * (1.0 - smoothing) + smoothing / len(LABELS)


def pooled(logits: Tensor, members: Tensor) -> Tensor:
    """`device`'s `pool` of each span: (batch, spans, classes) of moments' logits (batch, moments, classes).

    `members` (batch, spans, moments) are 1 for a span's own moments and 0 elsewhere.
    """
    against_normal = logits - logits[..., :1]
    shares = members / members.sum(dim=-1, keepdim=True).clamp(min=1.0)
    return torch.logsumexp(against_normal.unsqueeze(1) + (shares + NOWHERE).log().unsqueeze(-1), dim=2)


class Learner(nn.Module):
    """From a micro-batch to its loss; wrapped for several processes, another precision or compilation."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor, members: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean cross-entropy of spans (batch, spans) by their weights; shapes as `Fit.batches` gives them."""
        surprise = -(targets * pooled(self.model(windows), members).log_softmax(dim=-1)).sum(dim=-1)
        return (surprise * weights).sum() / weights.sum().clamp(min=NOWHERE)


def probabilities(crops: TrainingCrops, data: DataRecipe) -> Float64Array:
    """How likely each cycle (n,) is drawn."""
    cycles = crops.cycles
    return weights(
        [cycle.label for cycle in cycles],
        data.balance,
        [cycle.patient for cycle in cycles],
        data.patient_balance,
        corpora=[crops.recordings[cycle.recording].corpus for cycle in cycles],
        corpus_balance=data.corpus_balance,
        devices=[family(cycle.device) for cycle in cycles],
        device_balance=data.device_balance,
    )


class Fit:
    """One training run's moving state: model, average, optimizer, progress."""

    def __init__(
        self, recipe: Recipe, crops: TrainingCrops, validation: Validation | None, machine: Machine, seed: int
    ) -> None:
        """Without `validation` all patients train, and the weights of the last epoch are the ones to keep."""
        torch.manual_seed(seed)
        self.recipe, self.crops, self.validation, self.machine, self.seed = recipe, crops, validation, machine, seed
        # channels last: a step of MobileNet takes a third less time
        self.model: Network = network(recipe.model).to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.checkpointing = machine.checkpointing
        self.learner = Learner(self.model)
        self.average = AveragedModel(
            self.model, multi_avg_fn=moving_average(recipe.optimizer.average_decay), use_buffers=True
        )
        # norms, biases and positions are not decayed
        matrices = [p for p in self.learner.parameters() if p.ndim in (2, 4)]
        others = [p for p in self.learner.parameters() if p.ndim not in (2, 4)]
        groups = [
            {"params": matrices, "weight_decay": recipe.optimizer.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        base = torch.optim.AdamW(groups, lr=recipe.optimizer.learning_rate)
        self.sam = SAM(base, recipe.optimizer.rho, adaptive=recipe.optimizer.sharpness == "asam")
        self.wrapped = machine.set_up(self.learner)
        self.progress = Progress()
        self.unfinished: dict[str, Tensor] = {}
        """In the middle of an epoch, what each process has of its own, by name: (processes, n)."""
        self.losses: list[float] = []
        """Of this process's micro-batches of the epoch."""
        self.best_weights: dict[str, Tensor] = {}
        self.probabilities = probabilities(crops, recipe.data)
        self.draws = recipe.data.draws or len(crops.cycles)
        together = recipe.optimizer.batch * recipe.optimizer.accumulation * machine.processes
        self.steps_per_epoch = max(1, self.draws // together)

    def drawn(self, epoch: int) -> list[tuple[int, int, int]]:
        """Keys of this process's crops: every `processes`-th micro-batch of the epoch's draws, which all share."""
        optimizer, processes = self.recipe.optimizer, self.machine.processes
        size = self.steps_per_epoch * optimizer.accumulation * optimizer.batch * processes
        chosen = draw(self.probabilities, size, self.seed, epoch)
        return [
            (epoch, position, int(index))
            for position, index in enumerate(chosen)
            if position // optimizer.batch % processes == self.machine.rank
        ]

    def mixtures(self, random: np.random.Generator) -> list[tuple[float, IntArray]]:
        """Mixup of the processes' next micro-batches: the share of each, and the order (batch,) that it is mixed with.

        Drawn for all of them: the same mixtures however many share the work.
        """
        strength, batch = self.recipe.augmentation.mixup, self.recipe.optimizer.batch
        return [
            (float(random.beta(strength, strength)), random.permutation(batch)) for _ in range(self.machine.processes)
        ]

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """This process's micro-batches of one epoch from number `first` on, mixed up.

        Windows (batch, frames, mels), and of every span its moments (batch, spans, moments), soft targets (batch,
        spans, classes) and weight (batch, spans). A mixture has the spans of both its windows, each with its share.
        """
        optimizer, device = self.recipe.optimizer, self.machine.device
        # the epoch's keys are the sampler: workers may take them in any order and still cut the same windows
        keys = self.drawn(epoch)[first * optimizer.batch :]
        loader = DataLoader(self.crops, optimizer.batch, sampler=keys, num_workers=self.machine.workers)
        random, mixup = np.random.default_rng((self.seed, epoch, 3)), self.recipe.augmentation.mixup
        for _ in range(first if mixup else 0):
            self.mixtures(random)
        for windows, members, classes, shares in loader:
            targets = soft_targets(classes, optimizer.label_smoothing)
            if mixup:
                share, mixed = self.mixtures(random)[self.machine.rank]
                order = torch.from_numpy(mixed)
                windows = share * windows + (1.0 - share) * windows[order]
                members, targets = (torch.cat([one, one[order]], dim=1) for one in (members, targets))
                shares = torch.cat([share * shares, (1.0 - share) * shares[order]], dim=1)
            yield windows.to(device), members.to(device), targets.to(device), shares.to(device)

    def train_epoch(self, epoch: int, watcher: Watcher, clock: Clock) -> bool:
        """Take the steps that are left of an epoch; False where the clock stops it.

        FitError on a loss that is not finite.
        """
        optimizer, first = self.recipe.optimizer, self.progress.steps_done * self.recipe.optimizer.accumulation
        # dropout; an epoch is the same wherever a resume begins, and no process repeats another's masks
        torch.manual_seed(self.seed * 100_003 + epoch + RANK_STEP * self.machine.rank)
        self.wrapped.train()
        watcher.epoch_started(epoch, optimizer.epochs, self.steps_per_epoch)
        began = time.monotonic()
        for number, batch in enumerate(self.batches(epoch, first), first):
            if number == first:
                # not earlier: the loader's start draws from torch's random numbers
                self.take_up()
            last = (number + 1) % optimizer.accumulation == 0
            loss = self.micro_step(batch, last)
            if not np.isfinite(loss):
                raise self.lost(f"the loss is {loss}", epoch, number)
            self.losses.append(loss)
            if last:
                step = number // optimizer.accumulation
                norm = self.step(epoch * self.steps_per_epoch + step)
                if not np.isfinite(norm):
                    raise self.lost(f"the gradient's norm is {norm}", epoch, number)
                samples = (number + 1 - first) * optimizer.batch * self.machine.processes
                shown = float(np.mean(self.losses[-MEAN_LOSSES:]))
                watcher.stepped(step + 1, shown, samples / (time.monotonic() - began))
                self.progress.steps_done = step + 1
                if clock.stops_step(self.steps_per_epoch - step - 1):
                    self.put_down(epoch)
                    return False
        return True

    def put_down(self, epoch: int) -> None:
        """Between two steps of an epoch: gather what each process has of its own."""
        self.refuse_lost_weights(epoch)
        own = {
            "losses": np.array(self.losses, np.float32),
            "random": random_state(self.machine.device).numpy().astype(np.float32),
        }
        if buffers := [buffer.cpu().numpy().ravel() for buffer in self.buffers()]:
            own["buffers"] = np.concatenate(buffers)
        count = self.machine.processes
        self.unfinished = {name: torch.from_numpy(self.machine.together(row[None], count)) for name, row in own.items()}

    def take_up(self) -> None:
        """Inverse of `put_down`; nothing at the start of an epoch."""
        if not self.unfinished:
            return
        own = {name: rows[self.machine.rank] for name, rows in self.unfinished.items()}
        self.losses = own["losses"].tolist()
        restore_random_state(own["random"].to(torch.uint8), self.machine.device)
        if buffers := self.buffers():
            kept = torch.split(own["buffers"], [one.numel() for one in buffers])
            for buffer, values in zip(buffers, kept, strict=True):
                buffer.copy_(values.reshape(buffer.shape))
        self.unfinished = {}

    def buffers(self) -> list[Tensor]:
        """The running averages of batch norms, which each process has of the windows that it saw."""
        found = (*self.model.buffers(), *self.average.buffers())
        return [buffer for buffer in found if buffer.is_floating_point()]

    def lost(self, what: str, epoch: int, number: int) -> FitError:
        """The error that ends a run with a loss or a gradient that is not finite; its step is not taken."""
        return FitError(
            f"{what} in epoch {epoch + 1}, in a batch of {self.names_of(epoch, number)}; look at these recordings or "
            "lower the learning rate; the last finished epoch is kept"
        )

    def names_of(self, epoch: int, number: int) -> str:
        """The recordings of this process's micro-batch `number`."""
        batch = self.recipe.optimizer.batch
        keys = self.drawn(epoch)[number * batch : (number + 1) * batch]
        return ", ".join(sorted({self.crops.cycles[index].recording for _, _, index in keys}))

    def micro_step(self, batch: Tensors, last: bool = True) -> float:
        """Gradients of one micro-batch, shared with the other processes in the `last` of a step; returns its loss."""
        with self.machine.without_sharing(self.wrapped, enabled=not last):
            loss = backward_twice(
                self.learner,
                self.sam,
                lambda: self.wrapped(*batch),
                self.machine.device,
                1.0 / self.recipe.optimizer.accumulation,
                unshared=lambda: self.machine.without_sharing(self.wrapped),
                backward=self.machine.fabric.backward,
            )
        return float(loss)

    def step(self, number: int) -> float:
        """One optimizer step and one step of the average, unless the gradient's norm, returned, is not finite."""
        optimizer = self.recipe.optimizer
        for group in self.sam.base.param_groups:
            group["lr"] = learning_rate(optimizer, number, self.steps_per_epoch)
        norm = float(nn.utils.clip_grad_norm_(self.learner.parameters(), optimizer.clip_norm or float("inf")))
        if np.isfinite(norm):
            self.sam.step()
            self.sam.zero_grad()
            if optimizer.average_decay:
                self.average.update_parameters(self.model)
        return norm

    @property
    def serving(self) -> Network:
        """The weights that are validated and kept."""
        return cast(Network, self.average.module) if self.recipe.optimizer.average_decay else self.model

    def validate(self, validation: Validation) -> dict[str, float]:
        """Validation readings of the serving weights at their own best threshold with Se >= Sp."""
        logits = validation.logits(self.serving, self.machine)
        abnormal, probability = validation.labels > 0, abnormal_probability(logits)
        _, rates = choose_threshold(abnormal, probability)
        return {
            "sensitivity": rates.sensitivity,
            "specificity": rates.specificity,
            "score": rates.score,
            "auroc": auroc(abnormal, probability),
            "held_out_loss": surprise(logits, validation.labels),
        }

    def refuse_lost_weights(self, epoch: int) -> None:
        """FitError where weights are not finite; after the last step no loss would show it."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.learner.parameters()):
            raise FitError(
                f"the weights are no numbers any more at the end of epoch {epoch + 1}; lower the learning rate or set "
                "clip_norm; the last finished epoch is kept"
            )

    def reading_seconds(self) -> float:
        """About how long a reading of the held-out patients takes, from a few of their windows."""
        if self.validation is None:
            return 0.0
        few = self.validation.inputs[: self.model.config.windows_at_once][:TIMED_WINDOWS]
        began = time.monotonic()
        predict(self.serving, few, self.machine.device)
        return (time.monotonic() - began) * len(self.validation.inputs) / len(few) / self.machine.processes

    def run_epoch(self, watcher: Watcher, clock: Clock) -> bool:
        """Train, validate where patients are held out, remember the best; False where the clock stopped it before."""
        epoch, began = self.progress.epochs_done, time.monotonic() - self.progress.seconds_spent
        if not self.train_epoch(epoch, watcher, clock):
            self.progress.seconds_spent = time.monotonic() - began
            # after the checkpoint each process goes on with its own; whoever serves now is the same everywhere
            self.machine.same_buffers(self.model, self.average)
            return False
        loss = self.machine.mean(float(np.mean(self.losses)))
        self.refuse_lost_weights(epoch)
        step_seconds = (time.monotonic() - began) / self.steps_per_epoch
        self.machine.same_buffers(self.model, self.average)
        validating = time.monotonic()
        readings = {} if self.validation is None else self.validate(self.validation)
        clock.read(time.monotonic() - validating)
        seconds = time.monotonic() - began
        row = {"epoch": epoch + 1, "loss": loss, **readings, "seconds": round(seconds, 1), "step_seconds": step_seconds}
        self.progress.history.append(row)
        self.progress.epochs_done, self.progress.steps_done, self.progress.seconds_spent = epoch + 1, 0, 0.0
        self.losses = []
        if readings and (readings["score"], readings["auroc"]) > tuple(self.progress.best):
            self.progress.best, self.progress.best_epoch = (readings["score"], readings["auroc"]), epoch + 1
            self.best_weights = {name: t.detach().clone() for name, t in self.serving.state_dict().items()}
        watcher.epoch_ended(row)
        return True

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """One atomic checkpoint of everything, and the metrics so far."""
        state = self.sam.base.state_dict()
        moments = {f"{i}.{key}": t for i, values in state["state"].items() for key, t in values.items()}
        tensors = {
            **prefixed(self.model.state_dict(), "model"),
            **prefixed(self.average.state_dict(), "average"),
            **prefixed(self.best_weights, "best"),
            **prefixed(moments, "optimizer"),
            **prefixed(self.unfinished, "epoch"),
        }
        metadata = {"identity": identity, "seed": self.seed, "progress": dataclasses.asdict(self.progress)}
        save_tensors(folder / CHECKPOINT_FILE, tensors, metadata)
        rows = "".join(f"{_json(row)}\n" for row in self.progress.history)
        write_atomically(folder / METRICS_FILE, rows)

    def load(self, folder: Path, identity: dict[str, Any]) -> None:
        """Inverse of `save`; RunError when the checkpoint belongs to another recipe or seed."""
        tensors, metadata = load_tensors(folder / CHECKPOINT_FILE)
        kept = {**metadata["identity"], "seed": metadata["seed"]}
        refuse_another(folder / CHECKPOINT_FILE, kept, {**identity, "seed": self.seed})
        self.model.load_state_dict(under(tensors, "model"))
        self.average.load_state_dict(under(tensors, "average"))
        self.best_weights, self.unfinished = under(tensors, "best"), under(tensors, "epoch")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(tensors, "optimizer").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = self.sam.base.state_dict()["param_groups"]
        self.sam.base.load_state_dict({"state": state, "param_groups": groups})
        self.progress = Progress(**metadata["progress"])
        self.progress.best = (self.progress.best[0], self.progress.best[1])


def _json(row: dict[str, Any]) -> str:
    import json

    return json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})


class Events:
    """The rows of metrics.jsonl for `tensorboard --logdir RUN`; resuming hides those after the checkpoint."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / EVENTS_FOLDER, purge_step=epochs_done + 1)

    def add(self, row: dict[str, Any]) -> None:
        """One epoch."""
        for name, value in row.items():
            if isinstance(value, float):
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def train(
    fit: Fit,
    folder: Path,
    identity: dict[str, Any],
    *,
    resume: bool,
    minutes: float | None,
    watcher: Watcher,
    whole_epochs: bool = False,
) -> None:
    """Steps until the schedule's end, or until the next one and a reading of the held-out patients do not fit.

    At least one step, unless none of the `minutes` is left and an earlier call has trained one. With `whole_epochs` at
    least one epoch, and none that would not fit.
    """
    events = None
    try:
        if resume and (folder / CHECKPOINT_FILE).is_file():
            fit.load(folder, identity)
        elif fit.recipe.init:
            load_initial(fit.recipe.init, fit.model, fit.recipe.init_sha256)
        if not fit.machine.agree(fit.progress.epochs_done):
            raise FitError(
                f"{folder}: the processes do not see the same checkpoint there; give an --out on a disk that all share"
            )
        events = Events(folder, fit.progress.epochs_done) if fit.machine.rank == 0 else None
        reading_seconds = 0.0 if minutes is None or whole_epochs else fit.reading_seconds()
        clock, progress = Clock(minutes, fit.machine, whole_epochs, reading_seconds), fit.progress
        while progress.epochs_done < fit.recipe.optimizer.epochs:
            trained = progress.epochs_done + progress.steps_done > 0
            if clock.stops_epoch(trained, fit.steps_per_epoch - progress.steps_done):
                break
            ended = fit.run_epoch(watcher, clock)
            if events is not None:
                fit.save(folder, identity)
            if not ended:
                break
            if events is not None:
                events.add(fit.progress.history[-1])
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            if fit.machine.processes > 1 and _is_of_another_process(error):
                raise FitError(
                    f"another process of this run has stopped (this is {fit.machine.rank} of {fit.machine.processes}); "
                    "finished epochs are kept, go on with --resume"
                ) from error
            raise
        batch, accumulation = fit.recipe.optimizer.batch, fit.recipe.optimizer.accumulation
        smaller = f"try --batch {batch // 2} --accumulation {accumulation * 2}, which learns from as many cycles a step"
        remedy = (
            smaller if batch >= 4 else "no smaller --batch with more --accumulation will help; take a smaller model"
        )
        raise FitError(f"out of memory with --batch {batch} on {fit.machine.device}; {remedy}") from error
    finally:
        if events is not None:
            events.writer.close()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_of_another_process(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo and NCCL have messages of their own."""
    message = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "gloo" in message or "connection" in message
