"""`ss2d_scan` in plain PyTorch: the definition, and the same in a vectorised form that runs
anywhere.

Glossary (Mamba, section 2; MambaIR, section 3.2): x input, dt step size, A state matrix (diagonal,
negative), B input matrix, C output matrix, h hidden state, N states a channel, R rank of dt, K
directions.
Directions: 0 row-major, 1 column-major, 2 and 3 the reverses of 0 and 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32


def _sequences(image: Tensor, K: int) -> Tensor:
    """(B,H,W,K or 1,M) in image order -> (B,K,L,M) in the order of each direction."""
    rows = image.flatten(1, 2)
    columns = image.transpose(1, 2).flatten(1, 2)
    orders = [rows, columns, rows.flip(1), columns.flip(1)][:K]
    return torch.stack([o[:, :, k if o.shape[2] > 1 else 0] for k, o in enumerate(orders)], 1)


def _merge(y: Tensor, H: int, W: int) -> Tensor:
    """(B,K,L,D) in the order of each direction -> (B,H,W,D), the sum in image order."""
    B, K, _, D = y.shape
    if K == 1:
        return y.view(B, H, W, D)
    rows = (y[:, 0] + y[:, 2].flip(1)).view(B, H, W, D)
    columns = (y[:, 1] + y[:, 3].flip(1)).view(B, W, H, D)
    return rows + columns.transpose(1, 2)


def _parts(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per direction and in its order: x (B,K,L,D), dt (B,K,L,D), A (K,D,N), B and C (B,K,L,N)."""
    K, D, R = dt_weight.shape
    N = A_log.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    # (B,K,L,R), (B,K,L,N) twice
    dts, B, C = _sequences(x_dbl.to(dtype), K).split([R, N, N], -1)
    dt = F.softplus(
        torch.einsum("bklr,kdr->bkld", dts, dt_weight.to(dtype)) + dt_bias.to(dtype)[:, None]
    )
    A = -A_log.to(dtype).exp().view(K, D, N)
    return _sequences(x.to(dtype)[:, :, :, None], K), dt, A, B, C


def ss2d_scan_sequential(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
) -> Tensor:
    """The definition, one step after the other. Arguments and result as in `scan.ss2d_scan`."""
    K = dt_weight.shape[0]
    u, dt, A, B, C = _parts(x, x_dbl, dt_weight, dt_bias, A_log)
    # (B,K,D,N)
    h = u.new_zeros(u.shape[0], K, u.shape[3], A.shape[2])
    y = []
    for dt_t, dtu_t, B_t, C_t in zip(*(v.unbind(2) for v in (dt, dt * u, B, C)), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + dtu_t[..., None] * B_t[:, :, None]
        y.append((h * C_t[:, :, None]).sum(-1))
    out = torch.stack(y, 2) + D.to(u.dtype).view(K, 1, -1) * u
    return _merge(out, *x.shape[1:3]).to(x.dtype)


def ss2d_scan_vectorised(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
) -> Tensor:
    """The same with all chunks of CHUNK steps advancing together; differentiable by autograd.

    First every chunk runs from a zero state, then the chunks' end states are carried over the
    chunks, then every chunk runs again from its true start. The tail is padded with steps of size
    0.
    """
    K = dt_weight.shape[0]
    u, dt, A, B, C = _parts(x, x_dbl, dt_weight, dt_bias, A_log)
    batch, _, L, channels = u.shape
    T = min(CHUNK, L)
    G = -(-L // T)

    # (B,K,L,M) -> (T,B,K,G,M)
    def chunked(v: Tensor) -> Tensor:
        v = F.pad(v, (0, 0, 0, G * T - L))
        return v.view(batch, K, G, T, -1).permute(3, 0, 1, 2, 4).contiguous()

    steps, inputs, Bs, Cs = chunked(dt), chunked(dt * u), chunked(B), chunked(C)
    # (K,1,N,D)
    rates = A.transpose(1, 2)[:, None].contiguous()

    h = u.new_zeros(batch, K, G, A.shape[2], channels)
    if torch.is_grad_enabled():

        def step(h: Tensor, t: int) -> Tensor:
            return (
                h * torch.exp(steps[t][..., None, :] * rates)
                + inputs[t][..., None, :] * Bs[t][..., None]
            )

    # in place: twice as fast
    else:
        decay, inflow = torch.empty_like(h), torch.empty_like(h)

        def step(h: Tensor, t: int) -> Tensor:
            torch.mul(steps[t][..., None, :], rates, out=decay).exp_()
            torch.mul(inputs[t][..., None, :], Bs[t][..., None], out=inflow)
            return h.mul_(decay).add_(inflow)

    for t in range(T):
        h = step(h, t)
    # decay over a chunk
    whole = torch.exp(steps.sum(0)[..., None, :] * rates)
    start, state = [], torch.zeros_like(h[:, :, 0])
    for g in range(G):
        start.append(state)
        state = state * whole[:, :, g] + h[:, :, g]
    h, y = torch.stack(start, 2), []
    for t in range(T):
        h = step(h, t)
        y.append((Cs[t][..., None, :] @ h)[..., 0, :])
    # from (B,K,G,T,D)
    out = torch.stack(y, 3).view(batch, K, G * T, channels)[:, :, :L]
    return _merge(out + D.to(u.dtype).view(K, 1, -1) * u, *x.shape[1:3]).to(x.dtype)
