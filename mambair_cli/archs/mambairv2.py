"""MambaIRv2: Attentive State Space Restoration (arXiv:2411.15269), section 3.

All published forms, with the official tensor names. Attribute names are the checkpoint format.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import window_attention
from .complexity import Macs, layer_macs
from .frame import Frame, ResidualConv, Upsampler, read_frame, residual_conv, tail_floats
from .layers import (
    Block,
    LayerNorm,
    Linear,
    Padding,
    Pointwise,
    pointwise,
    to_image,
    to_tokens,
    without_autocast,
)
from .ss2d import SelectiveScan

LARGEST_WINDOW = 64
FeedForward = Literal["conv", "gated"]


@dataclass(frozen=True)
class MambaIRv2Config:
    """The shape of a MambaIRv2 net; as it stands, the base form.

    `tokens` are the prompts of the pool and `inner_rank` that of their factors; `ffn` is the
    convolutional feed-forward network of the base form or the gated one of the light form, with
    depthwise convolutions of `kernel` pixels a side. Attention has `heads` and windows of `window`
    pixels a side. `limits` of a number's metadata are what a recipe may ask for.
    """

    embed_dim: int = field(default=174, metadata={"limits": (6, 1024)})
    depths: tuple[int, ...] = field(default=(6, 6, 6, 6, 6, 6), metadata={"limits": (1, 100)})
    heads: int = field(default=6, metadata={"limits": (1, 64)})
    d_state: int = field(default=16, metadata={"limits": (1, 256)})
    expand: float = field(default=2.0, metadata={"limits": (0.25, 8)})
    inner_rank: int = field(default=64, metadata={"limits": (1, 1024)})
    tokens: int = field(default=128, metadata={"limits": (1, 1024)})
    ffn: FeedForward = "conv"
    window: int = field(default=16, metadata={"limits": (2, LARGEST_WINDOW)})
    kernel: int = field(default=5, metadata={"limits": (1, 15)})
    upsampler: Upsampler = "pixelshuffle"
    upscale: int = field(default=2, metadata={"limits": (1, 8)})
    in_chans: int = field(default=3, metadata={"limits": (1, 3)})
    resi_connection: ResidualConv = "1conv"
    padding: ClassVar[Padding] = "symmetric"

    @property
    def multiple(self) -> int:
        """Sides that the net takes without padding are multiples of it."""
        return self.window

    @property
    def inner(self) -> int:
        """D, channels of the scan and of the feed-forward networks."""
        return int(self.expand * self.embed_dim + 1e-6)

    def floats_per_pixel(self, backend: str) -> int:
        """Estimate of the floats that the net holds for each pixel of its input at its peak."""
        C, D, N = self.embed_dim, self.inner, self.d_state
        attention = 8 * C
        scan = 3 * D + 2 * self.tokens + -(-D // 16) + 3 * N
        if backend in ("reference", "mamba-ssm"):
            scan += 2 * (5 * D + 4 * N) + N * D // 8
        return 5 * C + max(attention, scan, 4 * D, tail_floats(self.upsampler, self.upscale))


def relative_positions(window: int) -> Tensor:
    """(n,n) int64 for the n pixels of a window: which row of the bias table a pair has."""
    empty = torch.empty(window**2, window**2, dtype=torch.int64)
    # Without values the shape is all, and to compute there would import 900 modules first.
    if empty.is_meta:
        return empty
    side = torch.arange(window)
    y, x = (v.flatten() for v in torch.meshgrid(side, side, indexing="ij"))
    down, right = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return down * (2 * window - 1) + right


class WindowAttention(nn.Module):
    """Multi-head attention within windows, its result mixed by `proj` (section 3.1; Swin)."""

    def __init__(self, C: int, window: int, heads: int):
        super().__init__()
        self.window, self.backend = window, "auto"
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        nn.init.trunc_normal_(table, std=0.02)
        self.proj = Linear(C, C)

    def forward(self, qkv: Tensor, positions: Tensor, shifted: bool) -> Tensor:
        """(B,H,W,3C), `relative_positions` -> (B,H,W,C)."""
        bias = self.relative_position_bias_table[positions.flatten()]
        # (h,n,n)
        bias = bias.t().unflatten(1, positions.shape)
        return self.proj(window_attention(qkv, bias, shifted, backend=self.backend))


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution aside."""

    def __init__(self, C: int, inner: int, kernel: int):
        super().__init__()
        self.fc1 = Linear(C, inner)
        depthwise = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        layers = nn.Sequential(depthwise, nn.GELU())
        self.dwconv = nn.Sequential(OrderedDict(depthwise_conv=layers))
        self.fc2 = Linear(inner, C)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        u = F.gelu(self.fc1(tokens))
        return self.fc2(u + to_tokens(self.dwconv(to_image(u))))


class SpatialGate(nn.Module):
    """Layer norm and depthwise convolution."""

    def __init__(self, C: int, kernel: int):
        super().__init__()
        self.norm = LayerNorm(C)
        self.conv = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        return to_tokens(self.conv(to_image(self.norm(tokens))))


class GatedFFN(nn.Module):
    """Feed-forward network whose one half gates the other after a depthwise convolution.

    Raises ValueError for an odd number of inner channels.
    """

    def __init__(self, C: int, inner: int, kernel: int):
        super().__init__()
        if inner % 2:
            raise ValueError(f"a gated feed-forward network needs two halves, not {inner} channels")
        half = inner // 2
        self.fc1 = Linear(C, inner)
        self.sg = SpatialGate(half, kernel)
        self.fc2 = Linear(half, C)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        # Two products instead of one that is split: both halves come out contiguous.
        halves = zip(self.fc1.weight.chunk(2), self.fc1.bias.chunk(2), strict=True)
        a, b = (F.gelu(pointwise(tokens, *half)) for half in halves)
        return self.fc2(a * self.sg(b))


class PromptedScan(SelectiveScan):
    """Selective scan of a sequence whose output matrix C is the token's own plus a prompt (equation
    6).
    """

    def __init__(self, inner: int, d_state: int):
        super().__init__(1, inner, d_state, math.ceil(inner / 16))
        self.reset_scan()

    def forward(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """(B,1,L,D), (B,1,L,N) -> (B,1,L,D)."""
        # (B,1,L,R+2N)
        x_dbl = pointwise(tokens, self.x_proj_weight[0]).to(prompts.dtype)
        rest = x_dbl.shape[-1] - prompts.shape[-1]
        x_dbl = x_dbl + F.pad(prompts, (rest, 0))
        return self.selective_scan(tokens, x_dbl[..., None, :])


class AttentiveScan(nn.Module):
    """Attentive state-space module, ASSM (section 3.2): tokens are routed to prompts and scanned in
    their order.
    """

    def __init__(self, config: MambaIRv2Config):
        super().__init__()
        C, D, T = config.embed_dim, config.inner, config.tokens
        # With a weight of its own nothing is drawn twice.
        prompts = torch.empty(T, config.inner_rank)
        self.embeddingB = nn.Embedding(T, config.inner_rank, _weight=prompts)
        nn.init.uniform_(self.embeddingB.weight, -1 / T, 1 / T)
        self.route = nn.Sequential(Linear(C, C // 3), nn.GELU(), Linear(C // 3, T))
        self.in_proj = nn.Sequential(Pointwise(C, D))
        self.CPE = nn.Sequential(nn.Conv2d(D, D, 3, padding=1, groups=D))
        self.selectiveScan = PromptedScan(D, config.d_state)
        self.out_norm = LayerNorm(D)
        self.out_proj = Linear(D, C)

    def forward(self, tokens: Tensor, factor: Tensor, noise: torch.Generator | None) -> Tensor:
        """The tokens of each prompt one after the other, scanned, and back in their places.

        The prompts themselves are added in image order, as the published net does: place t of the
        sequence gets that of pixel t.

        Args:
            tokens: (B,H,W,C).
            factor: (r,N), the right factor of the prompts.
            noise: draws the labels at evaluation; None: the most probable ones.

        Returns:
            (B,H,W,C).
        """
        B, H, W, _ = tokens.shape
        labels, prompts = self.routed(tokens, factor, noise)
        image = self.in_proj(to_image(tokens))
        x = to_tokens(image * torch.sigmoid(self.CPE(image))).flatten(1, 2)
        order = labels.sort(dim=1, stable=True).indices
        # (B,1,L,D)
        y = self.selectiveScan(_rows(x, order)[:, None], prompts[:, None])
        y = self.out_proj(self.out_norm(y))[:, 0]
        places = torch.arange(H * W, device=order.device).expand_as(order)
        back = torch.empty_like(order).scatter_(1, order, places)
        return _rows(y, back).view(B, H, W, -1)

    def routed(
        self, tokens: Tensor, factor: Tensor, noise: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The label of each token and its prompt: (B,H,W,C) -> (B,L), (B,L,N); in full precision.

        In training labels are drawn by their probability and gradients go through to it
        (straight-through Gumbel-softmax, arXiv:1611.01144).
        """
        with without_autocast(tokens.device):
            # (T,N)
            prompts = self.embeddingB.weight @ factor
            # (B,L,T)
            logits = self.route(tokens.to(prompts.dtype)).flatten(1, 2)
            if self.training:
                policy = F.gumbel_softmax(F.log_softmax(logits, -1), hard=True)
                return policy.argmax(-1), policy @ prompts
            if noise is not None:
                drawn = torch.empty_like(logits, memory_format=torch.contiguous_format)
                logits = F.log_softmax(logits, -1) - drawn.exponential_(generator=noise).log_()
            labels = _argmax(logits)
            return labels, F.embedding(labels, prompts)


def _argmax(logits: Tensor) -> Tensor:
    """Over the last axis, without gradients; on a CPU by numpy, which is five times as fast."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


def _rows(tokens: Tensor, order: Tensor) -> Tensor:
    """(B,L,C), (B,L) -> (B,L,C): each image's tokens in this order."""
    B, L, _ = tokens.shape
    first = L * torch.arange(B, device=order.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, (order + first).flatten()).view(tokens.shape)


class AttentiveLayer(Block):
    """Window attention and attentive state-space module, each with a feed-forward network (section
    3.1).
    """

    def __init__(self, config: MambaIRv2Config, shifted: bool):
        super().__init__()
        C, r = config.embed_dim, config.inner_rank
        feed_forward = {"conv": ConvFFN, "gated": GatedFFN}[config.ffn]
        self.shifted = shifted
        self.scale1 = nn.Parameter(torch.full((C,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((C,), 1e-4))
        self.norm1 = LayerNorm(C)
        self.norm2 = LayerNorm(C)
        self.norm3 = LayerNorm(C)
        self.norm4 = LayerNorm(C)
        self.wqkv = Linear(C, 3 * C)
        self.win_mhsa = WindowAttention(C, config.window, config.heads)
        self.assm = AttentiveScan(config)
        self.convffn1 = feed_forward(C, config.inner, config.kernel)
        self.convffn2 = feed_forward(C, config.inner, config.kernel)
        self.embeddingA = nn.Embedding(r, config.d_state, _weight=torch.empty(r, config.d_state))
        nn.init.uniform_(self.embeddingA.weight, -1 / r, 1 / r)

    def forward(self, tokens: Tensor, positions: Tensor, noise: torch.Generator | None) -> Tensor:
        """(B,H,W,C), `relative_positions`, what draws labels -> (B,H,W,C)."""
        qkv = self.wqkv(self.norm1(tokens))
        a = tokens + self.win_mhsa(qkv, positions, self.shifted)
        a = a + self.convffn1(self.norm2(a))
        tokens = torch.addcmul(a, tokens, self.scale1)
        a = tokens + self.assm(self.norm3(tokens), self.embeddingA.weight, noise)
        a = a + self.convffn2(self.norm4(a))
        return torch.addcmul(a, tokens, self.scale2)

    def start_as_identity(self) -> None:
        """Begin by returning the tokens as they are: for a new layer in a trained net."""
        names = "win_mhsa.proj", "convffn1.fc2", "assm.out_proj", "convffn2.fc2"
        last = [self.get_submodule(name) for name in names]
        for parameter in (p for layer in last for p in layer.parameters()):
            nn.init.zeros_(parameter)
        nn.init.zeros_(self.scale1)
        nn.init.zeros_(self.scale2)

    def macs(self, pixels: int) -> Macs:
        """The multiply-adds on so many pixels, as the paper counts them: also T x N a pixel for its
        prompt.
        """
        rank, states = self.embeddingA.weight.shape
        prompts = self.assm.embeddingB.num_embeddings * states
        attention = 2 * self.win_mhsa.window**2 * len(self.norm1.weight)
        own = Macs(0, pixels * (attention + prompts) + rank * prompts)
        scan = self.assm.selectiveScan.scan_macs(pixels)
        return layer_macs(self.modules(), pixels) + scan + own


class AttentiveGroup(nn.Module):
    """Attentive state-space group, ASSG: layers, a convolution, and the group's input (section
    3.1).
    """

    def __init__(self, config: MambaIRv2Config, depth: int):
        super().__init__()
        layers = nn.ModuleList(AttentiveLayer(config, bool(i % 2)) for i in range(depth))
        self.residual_group = nn.ModuleDict({"layers": layers})
        self.conv = residual_conv(config.resi_connection, config.embed_dim)

    def forward(self, tokens: Tensor, positions: Tensor, noise: torch.Generator | None) -> Tensor:
        """(B,H,W,C), `relative_positions`, what draws labels -> (B,H,W,C)."""
        x = tokens
        for layer in self.residual_group.get_submodule("layers").children():
            x = layer(x, positions, noise)
        return to_tokens(self.conv(to_image(x))) + tokens


class MambaIRv2(Frame):
    """The network: the frame around groups of attentive layers.

    Attributes:
        seed: of the noise that draws the labels of tokens at evaluation, anew for each call, in the
            way of the published net. None: each token has its most probable label, and nothing is
            random.

    Raises as `Frame`.
    """

    relative_position_index_SA: Tensor

    def __init__(self, config: MambaIRv2Config):
        if config.embed_dim % config.heads:
            raise ValueError(f"{config.heads} heads do not divide {config.embed_dim} channels")
        # A window's pairs of pixels, whose numbers are kept, are the fourth power of it.
        if config.window % 2 or not 2 <= config.window <= LARGEST_WINDOW:
            limits = f"from 2 to {LARGEST_WINDOW}"
            raise ValueError(f"window must be an even number {limits}, not {config.window}")
        super().__init__(config, lambda g: AttentiveGroup(config, config.depths[g]))
        self.register_buffer("relative_position_index_SA", relative_positions(config.window))
        self.seed: int | None = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def body(self, tokens: Tensor) -> Tensor:
        """All groups: (B,H,W,C) -> (B,H,W,C)."""
        noise = None
        # Where operations are counted, tensors have no values and nothing is drawn.
        if self.seed is not None and not tokens.is_meta:
            noise = torch.Generator(tokens.device).manual_seed(self.seed)
        for group in self.layers:
            tokens = group(tokens, self.relative_position_index_SA, noise)
        return tokens


def detect(state: Mapping[str, Tensor]) -> MambaIRv2Config | None:
    """The configuration of a MambaIRv2 state dict, read off its tensors; None for another
    network's.

    Raises ValueError where the tensors are of this family but of no published form.
    """
    layer = "layers.0.residual_group.layers.0"
    factor = state.get(f"{layer}.embeddingA.weight")
    if factor is None or "conv_first.weight" not in state:
        return None
    frame = read_frame(state, ".scale1")
    states = state[f"{layer}.assm.selectiveScan.A_logs"]
    table = state[f"{layer}.win_mhsa.relative_position_bias_table"]
    gated = f"{layer}.convffn1.sg.conv.weight"
    depthwise = gated if gated in state else f"{layer}.convffn1.dwconv.depthwise_conv.0.weight"
    return MambaIRv2Config(
        **frame,
        heads=table.shape[1],
        d_state=states.shape[1],
        expand=states.shape[0] / frame["embed_dim"],
        inner_rank=factor.shape[0],
        tokens=state[f"{layer}.assm.embeddingB.weight"].shape[0],
        ffn="gated" if gated in state else "conv",
        window=(math.isqrt(table.shape[0]) + 1) // 2,
        kernel=state[depthwise].shape[-1],
    )
