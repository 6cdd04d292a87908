"""Turn option files of BasicSR, with which the official project trains, into recipes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendError, CallError
from ..system.files import read_file
from ..system.texts import checked

LONGEST, MOST_BRACKETS = 2**20, 1_000
"""Of an option file: bytes, and its lists and tables within braces."""

MOST_ALIASES = 32
"""References of an option file to its own parts."""

LIGHT = "pixelshuffledirect"
"""The upsampler by which the official code tells its light networks."""
FOLDERS = {
    "path.pretrain_network_g": "init",
    "datasets.train.dataroot_gt": "data",
    "datasets.train.dataroot_lq": "low",
    "datasets.val.dataroot_gt": "val",
    "datasets.val.dataroot_lq": "val_low",
}
"""Options that are no part of a recipe, and the arguments of `train` that take their place."""
# fmt: off
SILENT = (
    "name", "model_type", "network_g.img_size", "network_g.window_size", "network_g.img_range",
    "network_g.bias", "network_g.dual_pixel_task", "network_g.out_channels", "datasets.train.name",
    "datasets.train.type", "datasets.train.io_backend", "datasets.train.dataset_enlarge_ratio",
    "datasets.train.prefetch_mode", "datasets.train.num_worker_per_gpu",
    "datasets.train.use_shuffle", "datasets.train.use_hflip", "datasets.train.use_rot",
    "datasets.train.geometric_augs", "datasets.train.phase", "datasets.train.scale",
    "datasets.train.in_ch", "datasets.train.gt_size", "train.pixel_opt.reduction",
    "train.gan_opt.real_label_val", "train.gan_opt.fake_label_val", "train.optim_g.type",
    "train.scheduler.type", "train.pixel_opt.type", "train.mixing_augs.use_identity",
    "train.total_iter", "path.strict_load_g", "path.resume_state", "logger", "val", "dist_params",
    "use_tb_logger", "print_network", "datasets.val.name", "datasets.val.type",
    "datasets.val.io_backend",
)
# fmt: on
"""Options that change nothing here."""


class Imported(NamedTuple):
    """What an option file says.

    Attributes:
        table: of a recipe.
        notes: a line for each option that has no counterpart.
        given: by option, the argument of `train` that takes its place, and its value.
    """

    table: dict[str, Any]
    notes: list[str]
    given: dict[str, tuple[str, Any]]


class _Options:
    """Nested options by dotted names; remembers which were not taken, and the last one found."""

    def __init__(self, values: Mapping[str, Any]):
        self.left: dict[str, Any] = {}
        self.last = ""
        self._flatten("", values)

    def _flatten(self, prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and name not in SILENT:
                self._flatten(f"{name}.", value)
            else:
                self.left[name] = _number(value)

    def take(self, name: str, default: Any = None) -> Any:
        if name in self.left:
            self.last = name
        value = self.left.pop(name, default)
        return default if value is None else value


def _number(value: Any) -> Any:
    """Return the number that a text stands for: YAML 1.1 reads 5e5 as text."""
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def convert(path: Path) -> Imported:
    """Turn an option file into a recipe.

    Raises CallError where there is no such file, it holds no options or is for another network, and
    BackendError where PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise BackendError("reading YAML needs PyYAML: pip install 'mambair[train]'") from None
    try:
        text = read_file(path, LONGEST).decode()
        # PyYAML takes hours for a hundred thousand
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError("it nests too deeply")
        # each could stand for all before it
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > MOST_ALIASES:
            raise ValueError("it refers to its own parts too often")
        values = checked(yaml.safe_load(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CallError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping) or not {"network_g", "train", "datasets"} <= values.keys():
        raise CallError(
            f"{path} holds no options of BasicSR: network_g, datasets and train are missing"
        )
    options = _Options(values)
    notes: list[str] = []
    try:
        network, scale = _network(options, path)
        data, iterations = _data(options, scale, notes)
        total = sum(iterations)
        table = {
            "scale": scale,
            "seed": options.take("manual_seed", 0),
            "summary": f"from {path.name}",
            "network": network,
            "data": data,
            "loss": _loss(options, notes),
            "optimiser": _optimiser(options, notes),
            "schedule": {"iterations": iterations, **_schedule(options, total, notes)},
        }
    except (TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise CallError(
            f"{path}: {options.last} has a value that it cannot have ({error})"
        ) from error
    found = {name: (field, options.take(name)) for name, field in FOLDERS.items()}
    given = {name: (field, value) for name, (field, value) in found.items() if value}
    template = "datasets.train.filename_tmpl"
    # as `photos.find_sources` looks for them
    if options.left.get(template) in ("{}", f"{{}}x{scale}"):
        options.take(template)
    for name, value in options.left.items():
        if not any(name == silent or name.startswith(f"{silent}.") for silent in SILENT):
            notes.append(f"{name}: {value} has no counterpart")
    return Imported(table, notes, given)


def _network(options: _Options, path: Path) -> tuple[dict[str, Any], int]:
    kind = options.take("network_g.type")
    if kind == "MambaIR":
        upsampler = options.take("network_g.upsampler", "")
        scale = options.take("network_g.upscale", options.take("scale", 1)) if upsampler else 1
        options.take("scale")
        network = {
            "arch": "mambair",
            "in_chans": options.take("network_g.in_chans", 3),
            "embed_dim": options.take("network_g.embed_dim", 96),
            "depths": options.take("network_g.depths", [6, 6, 6, 6]),
            "d_state": options.take("network_g.d_state", 16),
            "expand": float(options.take("network_g.mlp_ratio", 2.0)),
            "upsampler": upsampler,
            "conv_block": "light_c" if upsampler == LIGHT else "classic",
            "resi_connection": options.take("network_g.resi_connection", "1conv"),
            "drop_path_rate": float(options.take("network_g.drop_path_rate", 0.1)),
        }
        return network, scale
    if kind == "MambaIRUNet":
        options.take("scale")
        network = {
            "arch": "mambair_unet",
            "in_chans": options.take("network_g.inp_channels", 3),
            "dim": options.take("network_g.dim", 48),
            "blocks": options.take("network_g.num_blocks", [4, 6, 6, 8]),
            "refinement": options.take("network_g.num_refinement_blocks", 4),
            "expand": float(options.take("network_g.mlp_ratio", 1.5)),
        }
        return network, 1
    raise CallError(f"{path}: network_g.type must be MambaIR or MambaIRUNet, not {kind!r}")


def _data(options: _Options, scale: int, notes: list[str]) -> tuple[dict[str, Any], list[int]]:
    """[data], and the iterations of each stage."""
    train = "datasets.train."
    devices = options.take("num_gpu", 1)
    if not isinstance(devices, int):
        notes.append(f"num_gpu: {devices} is no number; the batch is that of one device")
        devices = 1
    per_device, iterations = options.take(f"{train}mini_batch_sizes"), options.take(f"{train}iters")
    sizes = options.take(f"{train}gt_sizes")
    if not (per_device and iterations and sizes):
        per_device = [options.take(f"{train}batch_size_per_gpu", 1)]
        sizes = [options.left.get(f"{train}gt_size", 64)]
        iterations = [options.left.get("train.total_iter", 1)]
    options.take(f"{train}batch_size_per_gpu")
    data: dict[str, Any] = {
        "patch": [n // scale for n in sizes],
        "batch": [devices * n for n in per_device],
    }
    sigma, quality = options.take(f"{train}sigma_range"), options.take(f"{train}quality")
    options.take(f"{train}sigma_type")
    if sigma is not None:
        levels = sigma if isinstance(sigma, list) else [sigma]
        data["degradation"] = {"kind": "noise", "sigma": [min(levels), max(levels)]}
    elif quality is not None:
        data["degradation"] = {"kind": "jpeg", "quality": [quality, quality]}
    elif scale == 1:
        data["degradation"] = {"kind": "sensor"}
        notes.append(
            "datasets.train names no noise: give degraded forms as `low`, else a camera's is made"
        )
    for name in ("use_hflip", "use_rot", "geometric_augs"):
        if options.left.get(f"{train}{name}") is False:
            notes.append(
                f"{train}{name}: false has no counterpart; patches are flipped and transposed"
            )
    if options.take("train.mixing_augs.mixup"):
        data["mixup"] = options.take("train.mixing_augs.mixup_beta", 1.2)
    return data, iterations


def _loss(options: _Options, notes: list[str]) -> dict[str, Any]:
    kind = options.left.get("train.pixel_opt.type", "L1Loss")
    if kind not in ("L1Loss", "CharbonnierLoss"):
        notes.append(f"train.pixel_opt.type: {kind} has no counterpart; L1 is taken")
    loss: dict[str, Any] = {"pixel": "charbonnier" if kind == "CharbonnierLoss" else "l1"}
    if (weight := options.take("train.pixel_opt.loss_weight", 1.0)) != 1:
        notes.append(f"train.pixel_opt.loss_weight: {weight} has no counterpart; it is 1")
    if (eps := options.take("train.pixel_opt.eps")) is not None:
        loss["epsilon"] = float(eps) ** 0.5
    loss["perceptual"] = float(options.take("train.perceptual_opt.perceptual_weight", 0.0))
    loss["adversarial"] = float(options.take("train.gan_opt.loss_weight", 0.0))
    loss["discriminator_lr"] = float(options.take("train.optim_d.lr", 1e-4))
    return loss


def _optimiser(options: _Options, notes: list[str]) -> dict[str, Any]:
    kind = options.left.get("train.optim_g.type", "Adam")
    decay = options.take("train.optim_g.weight_decay", 0)
    if kind not in ("Adam", "AdamW") or (kind == "Adam" and decay):
        notes.append(
            f"train.optim_g: {kind} with weight_decay {decay} has no counterpart; AdamW is taken"
        )
    return {
        "lr": float(options.take("train.optim_g.lr", 2e-4)),
        "betas": [float(b) for b in options.take("train.optim_g.betas", [0.9, 0.999])],
        "weight_decay": float(decay),
        "clip": 0.01 if options.take("train.use_grad_clip") else 0.0,
        "ema": float(options.take("train.ema_decay", 0)),
    }


def _schedule(options: _Options, total: int, notes: list[str]) -> dict[str, Any]:
    scheduler = "train.scheduler."
    kind = options.left.get(f"{scheduler}type")
    schedule: dict[str, Any] = {"warmup": max(0, options.take("train.warmup_iter", -1)) / total}
    if kind == "MultiStepLR":
        schedule["halve_at"] = [
            n / total for n in options.take(f"{scheduler}milestones", []) if n < total
        ]
        if (gamma := options.take(f"{scheduler}gamma", 0.5)) != 0.5:
            notes.append(f"{scheduler}gamma: {gamma} has no counterpart; the rate halves")
        return schedule if schedule["halve_at"] else {**schedule, "flat": 1.0}
    if kind == "CosineAnnealingRestartCyclicLR":
        periods = options.take(f"{scheduler}periods", [total])
        schedule["flat"] = sum(periods[:-1]) / total
        schedule["floor"] = float(options.take(f"{scheduler}eta_mins", [0.0])[-1])
        options.take(f"{scheduler}restart_weights")
    elif kind == "TrueCosineAnnealingLR":
        options.take(f"{scheduler}T_max")
        schedule["floor"] = float(options.take(f"{scheduler}eta_min", 0.0))
    else:
        notes.append(f"{scheduler}type: {kind} has no counterpart; the rate stays as it is")
        schedule["flat"] = 1.0
    return schedule
