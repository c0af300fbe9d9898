"""MODEL_CARD.md: what a bundle is, for whom, how accurate it is, where it fails, and how to make it again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from device.bundle import Manifest
from export.gates import gate_patients
from export.quantize import CALIBRATION_CYCLES, CONVERTED
from firmware_config.command_line import counted
from trainer.corpora.cycle import WEAK, Grain
from trainer.corpora.protocols import FLATTERED, LIES
from trainer.evaluation.history import latest
from trainer.metrics import FEW_PATIENTS, LEAST_PATIENTS, Interval, too_few
from trainer.reading import Reading
from trainer.tables import markdown

MODEL_CARD: Final = "MODEL_CARD.md"
TEMPLATE: Final = "model_card.md"
CORPORA: Final = {
    "kauh": (
        "KAUH: adults at King Abdullah University Hospital through a Littmann 3200, one label a recording; CC BY 4.0. "
        'Cite M. Fraiwan et al., "A dataset of lung sounds recorded from the chest wall using an electronic '
        'stethoscope", Data in Brief, 2021.'
    ),
    "sprsound": (
        "SPRSound: children at the Shanghai Children's Medical Center, 8 kHz; p1 is left posterior, p2 left lateral, "
        "p3 right posterior, p4 right lateral. The corpus is under GPL-3.0. Cite "
        'Q. Zhang et al., "SPRSound: Open-Source SJTU Paediatric Respiratory Sound Database", IEEE Transactions on '
        "Biomedical Circuits and Systems, 2022."
    ),
    "icbhi": (
        "ICBHI 2017 Respiratory Sound Database, free for research. Cite B. M. Rocha et al., "
        '"An open access database for the evaluation of respiratory sound classification algorithms", Physiological '
        "Measurement, 2019."
    ),
    "manifest": "A corpus of its owner's, under its owner's terms.",
}
GRAINS: Final[dict[Grain, str]] = {
    "event": "events",
    "cycle": "breath cycles",
    "recording": "whole recordings",
}
NETWORKS: Final = {"ast": "An Audio Spectrogram Transformer", "mobilenet": "A MobileNetV3"}
SIZES: Final = {
    "ast": "patches of {patch} every {stride}, width {dim}, {depth} blocks, {heads} heads, {pooling} pooling",
    "mobilenet": "MobileNetV3-Large at width 0.4, class logits for each of {moments} moments of the window",
}
EFFICIENTAT: Final = "mn04_as"
ORIGIN: Final = (
    "The weights began at EfficientAT's mn04_as (MIT licence), which learnt AudioSet: F. Schmid et al., "
    '"Efficient large-scale audio tagging via transformer-to-CNN knowledge distillation", ICASSP 2023.'
)
SCORES: Final = ("read on", "n", "Se", "Sp", "Score", "AUROC", "exact Score")
NEARNESS: Final = ("top1_agreement", "relative_logit_error", "kl_nats")
JUDGED: Final = {
    "held-out": "Patients of the training part, each judged by the one model that never met them. They chose "
    "{epochs}temperature, threshold and site rule and so look a little too good; {served} not in these numbers:",
    "test": f"THE TEST PART: {FLATTERED}:",
}
SEEN: Final = {
    True: "patients seen in training",
    False: "patients never seen in training",
    None: "patients perhaps seen in training",
}


def model_card(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """The card in Markdown; `sizes` are the files' bytes by name. All of it comes from the manifest."""
    metrics: Any = manifest.metrics
    recipe: Any = manifest.recipe
    validation = [Reading.model_validate(one) for one in metrics["validation"].values()]
    readings = _latest(manifest)
    known = readings or validation
    template = resources.files("export").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return template.format(
        manifest=manifest,
        architecture=manifest.architecture,
        recipe=recipe,
        measured=metrics["export"],
        file=manifest.files[0],
        classes=", ".join(manifest.labels[1:]),
        network=NETWORKS[_architecture(manifest)],
        sizes=SIZES[_architecture(manifest)].format(**manifest.architecture),
        corpus="\n\n".join(_sources(manifest)),
        labels=_labels(metrics.get("label_grains", {})),
        pooling=_pooling(manifest),
        calibration=_calibration(manifest),
        context=_context(manifest),
        ages=_ages(manifest),
        stethoscopes=", ".join(manifest.population.stethoscopes) or "unknown",
        sites=", ".join(manifest.population.sites) or "unknown",
        readings=_test_part(readings, metrics["earlier_readings"]),
        protocols=_lines(f"- `{protocol}`: {text}." for protocol, text in LIES.items()),
        confounders=_confounders(known),
        judged=JUDGED[recipe["data"]["choose_on"]].format(
            epochs="" if "refit_epochs" in recipe else "epochs, ",
            served="what serves has learnt from all patients, so nobody is left to judge it, and is"
            if "refit_epochs" in recipe
            else "the mean of several models is",
        ),
        validation=markdown(SCORES, map(_scores, validation)),
        few=_few({_where(one): one.patients for one in (*readings, *validation)}),
        least_patients=LEAST_PATIENTS,
        few_patients=FEW_PATIENTS,
        failures=_failures(known),
        groups=_groups(validation[-1]),
        epochs=", ".join(
            f"{best} of {done}" for best, done in zip(recipe["kept_epochs"], recipe["epochs_done"], strict=True)
        )
        + "".join(f", all patients {done}" for done in recipe.get("refit_epochs", ())),
        sections=_lines(
            ([f"- init: weights begin at {recipe['init']}."] if "init" in recipe else [])
            + [_section(name, recipe[name]) for name in ("optimizer", "data", "augmentation")]
        ),
        files=markdown(
            ("file", "precision", "for", "bytes", "sha256"),
            ((f"`{f.path}`", f.precision, f.target, f"{sizes[f.path]:,}", f"`{f.sha256}`") for f in manifest.files),
        ),
        converted=_converted(
            metrics["export"],
            recipe.get("quantization"),
            gate_patients(len(recipe["epochs_done"]), len(recipe.get("refit_epochs", ()))),
        ),
        commands=_lines(_commands(manifest)),
        versions=", ".join(f"{package} {number}" for package, number in manifest.versions.items()),
    )


def _latest(manifest: Manifest) -> list[Reading]:
    readings: Any = manifest.metrics["readings"]
    return latest([Reading.model_validate(one) for one in readings])


def _architecture(manifest: Manifest) -> str:
    return str(manifest.architecture["architecture"])


def _began_at_efficientat(manifest: Manifest) -> bool:
    return _architecture(manifest) == "mobilenet" and str(manifest.recipe.get("init", "")).startswith(EFFICIENTAT)


def _sources(manifest: Manifest) -> Iterator[str]:
    """The sources of its sounds and of its weights."""
    for name in manifest.corpus.split("+"):
        yield CORPORA.get(name, name)
    if _began_at_efficientat(manifest):
        yield ORIGIN


def _labels(grains: Mapping[Grain, int]) -> str:
    """What has a label in the recordings, and what weak labels are; nothing for a run that does not say."""
    if not grains:
        return ""
    counts = ", ".join(f"{GRAINS[grain]} ({counted(count, 'recording')})" for grain, count in grains.items())
    weak = f" Weak labels: {WEAK}." if "recording" in grains else ""
    return f"\n- Labels: of {counts}.{weak}"


def _pooling(manifest: Manifest) -> str:
    if manifest.architecture["moments"] == 1:
        return ""
    return "logits: over the cycle's own moments the log of the mean odds against normal; "


def _calibration(manifest: Manifest) -> str:
    allowed = manifest.calibration
    if allowed is None:
        return "Recordings of healthy people do not change the site's threshold."
    return (
        f"Recordings of healthy people may raise the site's threshold by up to {allowed.largest_shift:.2f} in "
        f"log-odds, so that at most {allowed.healthy_flagged:.0%} of them are flagged; with the "
        f"largest shift held-out patients still reached sensitivity {allowed.sensitivity_floor:.3f}."
    )


def _context(manifest: Manifest) -> str:
    seconds = manifest.segmentation.context_seconds
    return f" A shorter cycle is judged in {seconds:g} s of the sound around it." if seconds else ""


def _ages(manifest: Manifest) -> str:
    youngest, oldest = manifest.population.youngest_years, manifest.population.oldest_years
    return "ages unknown" if youngest is None or oldest is None else f"{youngest:g} to {oldest:g} years old"


def _test_part(readings: Sequence[Reading], earlier: int) -> str:
    """What was read of a test part with this model, and that it was with other weights or thresholds of its run."""
    other = f"{earlier} earlier reading{'s were' if earlier > 1 else ' was'} of other weights or thresholds of this run"
    if not readings:
        return f"No test part has been read{f' with this model; {other}' * bool(earlier)}; see the patients below."
    rows = ((*_scores(one), _patients(one), str(one.times_read)) for one in readings)
    return markdown((*SCORES, "patients", "times read"), rows) + f"\n\n{other}." * bool(earlier)


def _scores(reading: Reading) -> tuple[str, ...]:
    """Cells under SCORES."""
    binary = reading.binary
    figures = (binary.sensitivity, binary.specificity, binary.score, reading.auroc, reading.exact.score)
    return _where(reading), str(reading.n), *map(str, figures)


def _where(reading: Reading) -> str:
    return f"{reading.corpus} {reading.part}, `{reading.protocol}`"


def _few(patients: Mapping[str, int]) -> str:
    """What cannot be claimed of how many patients, by what they were read on; '' where there are enough."""
    return "".join(f"\n\n{where}: {few}." for where, count in patients.items() if (few := too_few(count)))


def _patients(reading: Reading) -> str:
    return f"{reading.patients or '?'} {SEEN[reading.patients_seen_in_training]}"


def _confounders(readings: Sequence[Reading]) -> str:
    names = list(dict.fromkeys(name for reading in readings for name in reading.confounders))
    rows = ((_where(one), *(str(one.confounders[name]) for name in names)) for one in readings)
    return markdown(("read on", *names), rows)


def _failures(readings: Sequence[Reading]) -> str:
    """Of every true class: how many there were, and what became of them."""
    rows = []
    for reading in readings:
        classes = reading.confusion.rows
        for index, (label, counts) in enumerate(zip(classes, reading.confusion.counts, strict=True)):
            no_verdict = sum(counts[len(classes) :])
            flagged = sum(counts) - counts[0] - no_verdict
            shares = (f"{part / max(sum(counts), 1):.0%}" for part in (flagged, counts[index], no_verdict))
            rows.append((_where(reading), label, str(sum(counts)), *shares))
    return markdown(("read on", "truly", "n", "called abnormal", "named exactly", "no verdict"), rows)


def _groups(reading: Reading) -> str:
    """Of every corpus, stethoscope, site and stage of life: how it was read."""
    rows = []
    by = {
        "corpus": reading.per_corpus,
        "stethoscope": reading.per_device,
        "site": reading.per_site,
        "age": reading.per_age,
    }
    for what, groups in by.items():
        for name, read in groups.items():
            rates = map(str, (read.sensitivity, read.specificity, read.score))
            rows.append((f"{what} {name or 'unknown'}", str(read.n), str(read.patients), *rates))
    return markdown((_where(reading), "n", "patients", "Se", "Sp", "Score"), rows)


def _section(name: str, values: Mapping[str, object]) -> str:
    shown = (
        f"{key} {' to '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in values.items()
    )
    return f"- {name}: {', '.join(shown)}."


def _converted(measured: Mapping[str, Any], how: Mapping[str, Any] | None, read_on: str) -> str:
    """What quantization changed on the gates' patients, how it was done and with which sounds."""
    if how is None:
        return ""
    header = (
        "file",
        "Score",
        "same top-1 class",
        "relative error of the logits",
        "KL (nats)",
        "Score change",
        "refitted",
    )
    rows = (
        (
            f"`{path}`",
            f"{read['score']:.4f}",
            *(f"{read[name]:g}" for name in NEARNESS),
            *(f"{Interval.of(read[at]['score']):+.4f}" for at in ("unchanged", "refitted")),
        )
        for path, read in measured["files"].items()
        if path in how["files"]
    )
    lines = [
        f"What the other files change of fp32's answers on {read_on}: at one temperature and threshold, and with both "
        "refitted for either file.",
        markdown(header, rows) + _few({"These files": measured["patients"]}),
        _lines(
            f"- `{path}`: {made['method']}{_kept(path, made['kept_float'])}." for path, made in how["files"].items()
        ),
    ]
    drawn = how["calibration"]
    if drawn:
        origin = "patients of another corpus" if drawn["other_data"] else "training patients"
        lines.append(f"The ranges of integers come from {drawn['cycles']} cycles of {drawn['patients']} {origin}.")
    return "\n\n" + "\n\n".join(lines)


def _kept(path: str, layers: Sequence[str]) -> str:
    asked = _asked(path, layers)
    return f"; left float on request: {', '.join(asked)}" if asked else ""


def _asked(path: str, kept_float: Sequence[str]) -> list[str]:
    """Of a file's float layers, those that its form would have converted."""
    return [name for form in CONVERTED if form.path == path for name in kept_float if form.converts(name)]


def _commands(manifest: Manifest) -> Iterator[str]:
    recipe = manifest.recipe
    fit = f"{_pairs(manifest.corpus)} --recipe {recipe['name']} --seed {recipe['seed']}"
    yield f"respsam-trainer fit {fit} --out RUN"
    for reading in _latest(manifest):
        where = f"{_pairs(reading.corpus)} {_part(reading.part)}--protocol {reading.protocol}"
        yield f"respsam-trainer evaluate RUN {where}"
    yield f"respsam-export build RUN{_options(manifest)} --out BUNDLE"


def _pairs(corpora: str) -> str:
    """The options that open corpora; their names are joined by +."""
    return " ".join(f"--corpus {name} --data DIR" for name in corpora.split("+"))


def _options(manifest: Manifest) -> str:
    """The options of `export build` that change the files."""
    how: Any = manifest.recipe.get("quantization", {"calibration": {}, "files": {}})
    precisions = {file.precision for file in manifest.files}
    targets = {file.target for file in manifest.files} - {"any"}
    options = [f"--{name}" for name in ("int8", "fp16") if name in precisions]
    if "tensorrt" in targets:
        options.append(f"--target {'both' if 'cpu' in targets else 'tensorrt'}")
    if how["calibration"].get("other_data"):
        options.append("--calibration-data DIR")
    if how["calibration"].get("cycles", CALIBRATION_CYCLES) != CALIBRATION_CYCLES:
        options.append(f"--calibration-cycles {how['calibration']['cycles']}")
    kept = dict.fromkeys(name for path, made in how["files"].items() for name in _asked(path, made["kept_float"]))
    options += [f"--keep-float {name}" for name in kept]
    if any((file.precision, file.target) == ("int8", "cpu") for file in manifest.files):
        options.append(f"--prefer {manifest.files[0].precision}")
    return "".join(f" {option}" for option in options)


def _part(part: str) -> str:
    """The option that takes these parts; a reading over several joins their names by +."""
    if part == "all":
        return ""
    return f"--part {part if '+' not in part else 'all' if 'train' in part else 'test'} "


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
