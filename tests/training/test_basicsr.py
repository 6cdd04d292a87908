import sys

import pytest
from failing import fails

from mambair_cli.errors import BackendError, CallError
from mambair_cli.training.basicsr import convert
from mambair_cli.training.recipe import build_network, read_recipe, resolve

pytest.importorskip("yaml")
CLASSIC = """
name: a_run
model_type: MambaIRModel
scale: 3
num_gpu: 8
manual_seed: 7
datasets:
  train:
    name: DF2K
    type: PairedImageDataset
    dataroot_gt: /sets/HR
    dataroot_lq: /sets/X3
    filename_tmpl: '{}x3'
    io_backend: {type: disk}
    gt_size: 192
    use_hflip: true
    use_rot: false
    num_worker_per_gpu: 16
    batch_size_per_gpu: 4
  val: {name: Set5, dataroot_gt: /sets/Set5}
network_g: {type: MambaIR, upscale: 3, in_chans: 3, img_size: 64, img_range: 1., embed_dim: 180,
            d_state: 16, depths: [6, 6, 6, 6, 6, 6], mlp_ratio: 2, upsampler: pixelshuffle,
            resi_connection: 1conv}
path: {pretrain_network_g: x2.pth, strict_load_g: false}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [125000, 200000, 225000, 237500, 250000], gamma: 0.5}
  total_iter: 250000
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  colour_opt: {weight: 2}
logger: {print_freq: 100}
"""


def imported(tmp_path, text):
    path = tmp_path / "options.yml"
    path.write_text(text)
    return convert(path)


def read(tmp_path, text):
    table, notes, _ = imported(tmp_path, text)
    return resolve(table, "options.yml"), notes


def test_classic_x3_is_the_bundled_recipe(tmp_path):
    config, notes = read(tmp_path, CLASSIC)
    bundled = read_recipe("classic-x3")
    assert config.schedule == bundled.schedule
    assert config.optimiser == bundled.optimiser
    assert (config.data.patch, config.data.batch) == (bundled.data.patch, bundled.data.batch)
    assert (config.scale, config.seed) == (3, 7)
    assert config.network == bundled.network | {"in_chans": 3, "resi_connection": "1conv"}
    assert notes == [
        "datasets.train.use_rot: false has no counterpart; patches are flipped and transposed",
        "train.colour_opt.weight: 2 has no counterpart",
    ]
    assert imported(tmp_path, CLASSIC).given == {
        "path.pretrain_network_g": ("init", "x2.pth"),
        "datasets.train.dataroot_gt": ("data", "/sets/HR"),
        "datasets.train.dataroot_lq": ("low", "/sets/X3"),
        "datasets.val.dataroot_gt": ("val", "/sets/Set5"),
    }


def test_other_names_of_pairs_are_told(tmp_path):
    for template, told in (("{}", False), ("{}x3", False), ("{}x2", True), ("{}_low", True)):
        _, notes = read(tmp_path, CLASSIC.replace("'{}x3'", f"'{template}'"))
        assert (f"datasets.train.filename_tmpl: {template} has no counterpart" in notes) == told


def test_denoising(tmp_path):
    text = CLASSIC.replace("upsampler: pixelshuffle", "upsampler: ''").replace(
        "mlp_ratio: 2", "mlp_ratio: 1.2"
    )
    text = text.replace(
        "gt_size: 192", "gt_size: 128\n    sigma_type: constant\n    sigma_range: 25"
    )
    text = text.replace("type: L1Loss", "type: CharbonnierLoss, eps: !!float 1e-3").replace(
        "    dataroot_lq: /sets/X3\n", ""
    )
    config, _ = read(tmp_path, text)
    bundled = read_recipe("denoise-25")
    assert config.loss.pixel == "charbonnier"
    assert config.loss.epsilon == pytest.approx(bundled.loss.epsilon)
    assert config.data.degradation == bundled.data.degradation
    assert config.network["expand"] == 1.2
    assert (config.scale, config.data.patch) == (1, (128,))


def test_progressive_training(tmp_path):
    text = CLASSIC[: CLASSIC.index("network_g:")].replace(
        "gt_size: 192", "gt_size: 384\n    gt_sizes: [128, 384]"
    )
    text = text.replace("batch_size_per_gpu: 4", "mini_batch_sizes: [8, 1]\n    iters: [200, 100]")
    text += """
network_g: {type: MambaIRUNet, inp_channels: 3, out_channels: 3, dim: 48, num_blocks: [4, 6, 6, 8],
            num_refinement_blocks: 4, mlp_ratio: 1.5, bias: false, dual_pixel_task: false}
train:
  total_iter: 300
  use_grad_clip: true
  mixing_augs: {mixup: true, mixup_beta: 1.2, use_identity: true}
  scheduler: {type: CosineAnnealingRestartCyclicLR, periods: [92, 208], restart_weights: [1, 1],
              eta_mins: [0.0003, 0.000001]}
  optim_g: {type: AdamW, lr: !!float 3e-4, weight_decay: !!float 1e-4, betas: [0.9, 0.999]}
  pixel_opt: {type: L1Loss, loss_weight: 1, reduction: mean}
"""
    config, notes = read(tmp_path, text)
    bundled = read_recipe("denoise-real", iterations=300)
    assert (config.schedule.flat, config.schedule.floor) == (pytest.approx(92 / 300), 1e-6)
    assert config.optimiser == bundled.optimiser
    assert (config.data.patch, config.data.batch, config.data.mixup) == ((128, 384), (64, 8), 1.2)
    assert config.schedule.iterations == (200, 100)
    parameters = [sum(p.numel() for p in build_network(c).parameters()) for c in (config, bundled)]
    assert parameters[0] == parameters[1]
    assert any("no noise" in note for note in notes)


def test_what_differs_is_said(tmp_path):
    text = CLASSIC.replace("gamma: 0.5", "gamma: 0.1").replace(
        "L1Loss, loss_weight: 1.0", "MSELoss, loss_weight: 3.0"
    )
    text = text.replace("weight_decay: 0", "weight_decay: 0.1").replace(
        "num_gpu: 8", "num_gpu: auto"
    )
    config, notes = read(tmp_path, text)
    for words in (
        "gamma: 0.1",
        "MSELoss",
        "loss_weight: 3.0",
        "Adam with weight_decay 0.1",
        "num_gpu: auto",
    ):
        assert any(words in note for note in notes)
    assert config.data.batch == (4,)
    unknown, notes = read(tmp_path, CLASSIC.replace("MultiStepLR", "OneCycleLR"))
    assert unknown.schedule.flat == 1
    assert any("OneCycleLR has no counterpart; the rate stays" in note for note in notes)
    assert config.optimiser.clip == 0


def test_numbers_with_an_exponent_are_text_in_yaml(tmp_path):
    text = CLASSIC.replace("lr: !!float 1e-4", "lr: 1e-4").replace(
        "total_iter: 250000", "total_iter: 2.5e5"
    )
    assert read(tmp_path, text) == read(tmp_path, CLASSIC)


def test_files_that_are_none(tmp_path, monkeypatch):
    for text, words in (
        ("a: [", ["no readable YAML"]),
        ("- 1", ["no options of BasicSR"]),
        ("train: {}", ["network_g, datasets and train"]),
        (
            CLASSIC.replace("type: MambaIR,", "type: SwinIR,"),
            ["MambaIR or MambaIRUNet", "'SwinIR'"],
        ),
        (
            CLASSIC.replace("lr: !!float 1e-4", "lr: fast"),
            ["train.optim_g.lr has a value that it cannot have", "fast"],
        ),
        (CLASSIC.replace("betas: [0.9, 0.99]", "betas: 2"), ["train.optim_g.betas"]),
        (CLASSIC.replace("total_iter: 250000", "total_iter: 0"), ["cannot have"]),
    ):
        (tmp_path / "options.yml").write_text(text)
        fails(lambda: convert(tmp_path / "options.yml"), CallError, "options.yml", *words)
    fails(lambda: convert(tmp_path / "none.yml"), CallError, "none.yml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    fails(lambda: convert(tmp_path / "options.yml"), BackendError, "PyYAML", "mambair[train]")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000,
        "a: " + "{a: " * 100 + "1" + "}" * 100,
        "a: &a [1]\n" + "".join(f"k{i}: [*a]\n" for i in range(100)),
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
    ],
    ids=["open", "deep", "references", "merges"],
)
def test_files_that_grow_when_they_are_read_are_refused(tmp_path, text):
    path = tmp_path / "options.yml"
    path.write_text(text)
    fails(lambda: convert(path), CallError, "options.yml", "no readable YAML")
