"""The cases of the fused ops: linear, embedding, norms, attention, losses.  Read op_cases first."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from op_inputs import (
    Call,
    array,
    broadcastable,
    case,
    integers,
    mask,
    shapes,
    sides,
)


# ---- products, embedding, norms ------------------------------------------------------------------
@case("matmul")
def _(draw, smooth):
    N, K, M = (draw(sides()) for _ in range(3))
    one, two = draw(broadcastable(2))
    left = draw(st.sampled_from([(K,), (N, K), (*one[:2], N, K)]))
    right = draw(st.sampled_from([(K,), (K, M), (*two[:2], K, M)]))
    if len(left) > 2 and len(right) > 2:
        try:
            np.broadcast_shapes(left[:-2], right[:-2])
        except ValueError:
            left = (N, K)
    return Call((draw(array(left, smooth)), draw(array(right, smooth))))


@case("linear")
def _(draw, smooth):
    I, O = draw(sides()), draw(sides())
    x = draw(array((*draw(shapes(max_dims=2)), I), smooth))
    bias = draw(st.none() | array((O,), smooth))
    return Call((x, draw(array((O, I), smooth)), bias))


@case("embedding")
def _(draw, smooth):
    V, C = draw(sides(1, 5)), draw(sides())
    ids = draw(integers(draw(shapes(max_dims=2)), 0, V))
    return Call(
        (ids, draw(array((V, C), smooth))),
        {"padding_idx": None if smooth else draw(st.none() | st.integers(0, V - 1))},
    )


def normalisation(name, biased):
    @case(name)
    def make(draw, smooth):
        x = draw(array(shapes(min_dims=1, min_side=1), smooth))
        n_axes = draw(st.integers(1, x.ndim))
        row = x.shape[x.ndim - n_axes :]
        x = x[: draw(st.integers(0, x.shape[0]))] if n_axes < x.ndim else x
        inputs = [x, draw(st.none() | array(row, smooth))]
        if biased:
            inputs.append(None if inputs[1] is None else draw(st.none() | array(row, smooth)))
        return Call(tuple(inputs), {"n_axes": n_axes, "eps": draw(st.sampled_from([1e-5, 1e-2]))})


normalisation("layer_norm", True)
normalisation("rms_norm", False)


# ---- attention -----------------------------------------------------------------------------------
@case("rope")
def _(draw, smooth):
    T, half = draw(sides()), draw(sides(1))
    angles = draw(array((T, half)))
    x = draw(array((*draw(shapes(max_dims=2)), T, 2 * half), smooth))
    return Call((x, np.cos(angles), np.sin(angles)))


@case("attention")
def _(draw, smooth):
    as_in_a_model = draw(st.booleans())  # causal, of equal lengths, without a mask
    batch = (2,) if as_in_a_model else draw(st.sampled_from([(), (1,), (2,), (0,)]))
    G, share, T, S = draw(sides(1, 2)), draw(sides(1, 2)), draw(sides(1)), draw(sides(1))
    D, E = draw(sides(1)), draw(sides(1))
    H, S = G * share, T if as_in_a_model else S
    full = (*batch, H, T, S)
    shape = draw(st.sampled_from([full, (T, S), (1, S), (H, 1, S)]))
    m = None if as_in_a_model else draw(st.none() | mask(shape) | array(shape, smooth))
    p = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Call(
        (
            draw(array((*batch, H, T, D), smooth)),
            draw(array((*batch, G, S, D), smooth)),
            draw(array((*batch, G, S, E), smooth)),
            m,
            draw(mask(full)) if p else None,
        ),
        {
            "causal": as_in_a_model or draw(st.booleans()),
            "scale": draw(st.sampled_from([None, 0.5])),
            "dropout_p": p,
        },
    )


# ---- losses --------------------------------------------------------------------------------------
def class_loss(name):
    @case(name)
    def make(draw, smooth):
        N, V = draw(sides()), draw(sides(1, 5))
        targets = draw(integers((N,), 0, V))
        ignore = draw(st.sampled_from([-100, 0]))
        if draw(st.booleans()):
            targets = np.where(draw(mask((N,))), targets, ignore)
        options = {
            "ignore_index": ignore,
            "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        }
        if smooth and options["reduction"] == "mean":
            assume((targets != ignore).any())  # 0 / 0 has no differences
        if name == "cross_entropy":
            options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
        weight = draw(st.none() | array((V,), True, 0.1, 2.0))
        return Call((draw(array((N, V), smooth)), targets, weight), options)


class_loss("cross_entropy")
class_loss("nll_loss")


@case("linear_cross_entropy")
def _(draw, smooth):
    N, C, V = draw(sides(1 if smooth else 0)), draw(sides(1)), draw(sides(1, 5))
    targets = draw(integers((N,), 0, V))
    ignore = draw(st.sampled_from([-100, 0]))
    targets = np.where(draw(mask((N,))), targets, ignore)
    reduction = draw(st.sampled_from(["none", "sum", "mean"]))
    if smooth and reduction == "mean":
        assume((targets != ignore).any())  # 0 / 0 has no differences
    return Call(
        (draw(array((N, C), smooth)), draw(array((V, C), smooth)), targets),
        {"ignore_index": ignore, "reduction": reduction},
    )


@case("mse_loss")
def _(draw, smooth):
    one, two = draw(broadcastable(2))
    options = {"reduction": draw(st.sampled_from(["none", "sum", "mean"]))}
    if smooth:
        assume(0 not in np.broadcast_shapes(one, two))
    return Call((draw(array(one, smooth)), draw(array(two, smooth))), options)
