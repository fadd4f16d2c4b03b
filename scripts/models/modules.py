"""Small PyTorch networks that `make` exports: transformers, convolutions, recurrent ones, odd inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE, HEADS, VOCABULARY = 32, 2, 50
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Of an encoder like BERT: the width, that of the dense layers between, heads, layers, words and places."""

    wide: int = WIDE
    between: int = 64
    heads: int = HEADS
    layers: int = 2
    words: int = VOCABULARY
    places: int = 24


SMALL_BERT = Sizes(512, 2048, 8, 4, 30522, 512)
"""BERT-Small: Turc et al. 2019, "Well-Read Students Learn Better"."""


@dataclass(frozen=True)
class Module:
    """A network to be exported.

    Attributes:
        build: makes it; the random state is seeded before.
        example: makes its arguments.
        train: leave it in training mode.
        open_dims: of `torch.export`, per argument; None where all shapes are fixed.
        onnx: names of inputs and outputs; None where it is only written as a program.
        onnx_open: per input or output the names of open dimensions.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Any, ...]]
    train: bool = False
    open_dims: Callable[[], Any] | None = None
    onnx: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    onnx_open: Mapping[str, Mapping[int, str]] | None = None


class SelfAttention(nn.Module):
    """As BERT's: four dense layers around the scaled product, with a mask that is added."""

    def __init__(self, wide: int = WIDE, heads: int = HEADS) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(wide, wide) for _ in range(3))
        self.out, self.heads = nn.Linear(wide, wide), heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, wide = x.shape
        heads = (batch, length, self.heads, wide // self.heads)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, length, wide))


class EncoderLayer(nn.Module):
    """Attention and two dense layers, the norms behind the sums."""

    def __init__(self, sizes: Sizes = Sizes()) -> None:
        super().__init__()
        wide = sizes.wide
        self.attention = SelfAttention(wide, sizes.heads)
        self.first, self.second = nn.Linear(wide, sizes.between), nn.Linear(sizes.between, wide)
        self.norm, self.last_norm = nn.LayerNorm(wide), nn.LayerNorm(wide)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, mask))
        return self.last_norm(x + self.second(F.gelu(self.first(x))))


class Encoder(nn.Module):
    """Like BERT: three tables, some layers, a pooled first token."""

    def __init__(self, sizes: Sizes = Sizes()) -> None:
        super().__init__()
        wide = sizes.wide
        self.words, self.places = nn.Embedding(sizes.words, wide), nn.Embedding(sizes.places, wide)
        self.kinds, self.norm = nn.Embedding(2, wide), nn.LayerNorm(wide)
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))
        self.pool = nn.Linear(wide, wide)
        self.register_buffer("position_ids", torch.arange(sizes.places)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
        places = self.places(self.position_ids[:, : input_ids.shape[1]])  # type: ignore[index]
        x = self.norm(self.words(input_ids) + self.kinds(token_type_ids) + places)
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pool(x[:, 0]))


class VitLayer(nn.Module):
    """With PyTorch's own attention, the norms before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last_norm = nn.LayerNorm(WIDE), nn.LayerNorm(WIDE)
        self.attention = nn.MultiheadAttention(WIDE, HEADS, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(WIDE, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, WIDE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.dense(self.last_norm(x))


class Vit(nn.Module):
    """A vision transformer: patches of 4 pixels, a class token, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDE, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDE))
        self.places = nn.Parameter(torch.randn(1, 17, WIDE) * 0.1)
        self.layers = nn.Sequential(VitLayer(), VitLayer())
        self.norm, self.head = nn.LayerNorm(WIDE), nn.Linear(WIDE, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class CrossAttention(nn.Module):
    """PyTorch's attention over another sequence, time first, keys that are left out; no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDE, 4, kdim=16, vdim=16)

    def forward(self, x: Tensor, memory: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, memory, memory, key_padding_mask=left_out)


class NegativeAxes(nn.Module):
    """Squeeze, unsqueeze, concatenation, softmax, mean and split along axes counted from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).unsqueeze(-1).squeeze(-1)
        left, right = torch.cat([y, x], -3).softmax(-3).chunk(2, -1)
        return (left - right).mean((-1, -2), keepdim=True).squeeze(-1)


class Decoder(nn.Module):
    """One layer that attends to past keys and values as well and gives the longer ones back."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv, self.out = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 48), nn.Linear(16, VOCABULARY)

    def forward(self, ids: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, key, value = self.qkv(self.words(ids)).chunk(3, -1)
        key, value = torch.cat([past_key, key], 1), torch.cat([past_value, value], 1)
        return self.out(torch.softmax(q @ key.transpose(1, 2) / 4.0, -1) @ value), key, value


class ConvNextBlock(nn.Module):
    """Depthwise convolution, then norm and dense layers over the channels moved to the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.first = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.second = nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.second(F.gelu(self.first(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """A stem, two blocks with a smaller image between them, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 24, 2, 2)
        self.block, self.last, self.norm = ConvNextBlock(16), ConvNextBlock(24), nn.GroupNorm(1, 16)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.down(self.norm(self.block(self.stem(x)))))
        return self.head(x.mean((-2, -1)))


class ChannelsMoved(nn.Module):
    """Two convolutions with a norm over the last axis between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(16), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).movedim(1, -1)).movedim(-1, 1).relu())


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Down, up by a transposed convolution, concatenated with what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 8)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.up(self.second(F.max_pool2d(x, 2)))
        return self.last(self.third(torch.cat([x, y], 1)))


class Upsample(nn.Module):
    """Pixel shuffle, bilinear to an odd size, nearest, average pooling that rounds up, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(F.pixel_shuffle(self.first(x), 2))
        y = F.interpolate(y, size=(13, 15), mode="bilinear", align_corners=False)
        y = F.avg_pool2d(F.interpolate(y, scale_factor=2), 3, 2, ceil_mode=True, count_include_pad=False)
        return self.up(y)


class Recurrent(nn.Module):
    """An LSTM or GRU and a dense layer over its last step."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], **options: Any) -> None:
        super().__init__()
        self.steps = kind(8, 12, batch_first=True, **options)
        self.head = nn.Linear(24 if options.get("bidirectional") else 12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0][:, -1])


class TrainedNorm(nn.Module):
    """A batch norm that was left in training mode behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu())


class DenseNorm(nn.Module):
    """A batch norm behind a dense layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 12), nn.BatchNorm1d(12, **options), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


class NormsWithoutStatistics(nn.Module):
    """A batch norm without running statistics, an instance norm with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.last_norm = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.last(self.norm(self.conv(x)).relu()))


class Mlp(nn.Module):
    """Two dense layers around a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.norm(self.first(x))))


class TwoOpen(nn.Module):
    """Two inputs with the same open batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 8), nn.Linear(6, 8)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.left(left) + self.right(right))


class Counter(nn.Module):
    """A buffer that every run adds to; the result depends on it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)
        self.register_buffer("seen", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(x.mean(0))
        return self.dense(x - self.seen)


class Ring(nn.Module):
    """A window of past inputs: the oldest goes, the new one comes."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)
        self.register_buffer("window", torch.zeros(1, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        longer = torch.cat([self.window, x], -1)
        self.window.copy_(longer[:, :, -2:])
        return self.conv(longer)


class DictOut(nn.Module):
    """Results by name, one of them a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.relu(self.first(x))
        return {"logits": self.last(y), "features": (y, y.mean(-1))}


class NestedIn(nn.Module):
    """A dictionary, a tuple and a number as arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)

    def forward(self, batch: dict[str, Tensor], pair: tuple[Tensor, Tensor], factor: float) -> Tensor:
        return self.dense(batch["x"] * factor + batch["y"]) + pair[0] * pair[1]


class Types(nn.Module):
    """Inputs of 32 bits, truth values and 64 bits of a fraction."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = nn.Embedding(20, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, keep: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.where(keep[..., None], self.table(ids), torch.zeros(()))
        return self.dense(x), exact * 2.0, ids + 1


class Scalars(nn.Module):
    """A scalar comes in, a scalar goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 4)

    def forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        y = self.dense(x * factor)
        return y, y.sum()


class PassesThrough(nn.Module):
    """One result is an argument, one argument is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 4)

    def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
        return self.dense(x), x


class TwoTables(nn.Module):
    """Words and positions, looked up and added."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.dense = nn.Embedding(40, 16), nn.Embedding(12, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))


def ids(*shape: int) -> Tensor:
    """Numbers of words that every table has."""
    return torch.randint(0, 2, shape)


def sentence(batch: int, length: int) -> tuple[Tensor, ...]:
    """The three arguments of `Encoder`."""
    return ids(batch, length), torch.ones(batch, length, dtype=torch.int64), ids(batch, length)


def floats(*shapes: Shape, dtype: torch.dtype = torch.float32) -> Callable[[], tuple[Tensor, ...]]:
    """Arguments that are normal numbers."""
    return lambda: tuple(torch.randn(shape).to(dtype) for shape in shapes)


def dims(*names: str) -> list[Any]:
    """Open dimensions of `torch.export`."""
    return [torch.export.Dim(name, min=1, max=24) for name in names]


def sentence_dims() -> Any:
    """Batch and sequence are open, for all three arguments."""
    batch, sequence = dims("batch", "sequence")
    return tuple({0: batch, 1: sequence} for _ in range(3))


SENTENCE = (("input_ids", "attention_mask", "token_type_ids"), ("last_hidden_state", "pooler_output"))
BATCH_AND_SEQUENCE = {0: "batch", 1: "sequence"}
HALF, BRAIN = torch.float16, torch.bfloat16
MODULES: dict[str, Module] = {
    "encoder": Module(Encoder, lambda: sentence(1, 12), onnx=SENTENCE),
    "encoder_open": Module(
        Encoder,
        lambda: sentence(2, 12),
        open_dims=sentence_dims,
        onnx=SENTENCE,
        onnx_open={**dict.fromkeys((*SENTENCE[0], SENTENCE[1][0]), BATCH_AND_SEQUENCE), SENTENCE[1][1]: {0: "batch"}},
    ),
    "vit": Module(Vit, floats((1, 3, 16, 16)), onnx=(("pixels",), ("logits",))),
    "vit_open": Module(
        Vit,
        floats((2, 3, 16, 16)),
        open_dims=lambda: ({0: dims("batch")[0]},),
        onnx=(("pixels",), ("logits",)),
        onnx_open={"pixels": {0: "batch"}, "logits": {0: "batch"}},
    ),
    "cross_attention": Module(
        CrossAttention,
        lambda: (torch.randn(5, 2, WIDE), torch.randn(7, 2, 16), torch.tensor([[False] * 5 + [True] * 2] * 2)),
    ),
    "negative_axes": Module(NegativeAxes, floats((1, 3, 10, 12)), onnx=(("x",), ("y",))),
    "decoder_empty_past": Module(Decoder, lambda: (ids(1, 4), torch.zeros(1, 0, 16), torch.zeros(1, 0, 16))),
    "convnext": Module(ConvNext, floats((1, 3, 32, 32))),
    "channels_moved": Module(ChannelsMoved, floats((1, 3, 12, 12))),
    "unet": Module(UNet, floats((1, 3, 16, 16))),
    "upsample": Module(Upsample, floats((1, 4, 7, 9))),
    "lstm": Module(lambda: Recurrent(nn.LSTM), floats((1, 6, 8))),
    "lstm_both_ways": Module(lambda: Recurrent(nn.LSTM, bidirectional=True), floats((2, 4, 8))),
    "gru": Module(lambda: Recurrent(nn.GRU), floats((1, 6, 8))),
    "norm_trained": Module(TrainedNorm, floats((2, 3, 12, 12)), train=True),
    "norm_trained_dense": Module(DenseNorm, floats((6, 16)), train=True),
    "norm_no_statistics": Module(NormsWithoutStatistics, floats((2, 3, 12, 12))),
    "norm_no_statistics_dense": Module(lambda: DenseNorm(track_running_stats=False), floats((6, 16))),
    "half_linear": Module(lambda: nn.Linear(16, 8).half(), floats((4, 16), dtype=HALF)),
    "half_conv": Module(lambda: nn.Conv2d(3, 8, 3).half(), floats((1, 3, 10, 10), dtype=HALF)),
    "half_mlp": Module(lambda: Mlp().half(), floats((4, 16), dtype=HALF)),
    "half_unet": Module(lambda: UNet().half(), floats((1, 3, 16, 16), dtype=HALF)),
    "bfloat_mlp": Module(lambda: Mlp().bfloat16(), floats((4, 16), dtype=BRAIN)),
    "bfloat_conv": Module(lambda: nn.Conv2d(3, 8, 3).bfloat16(), floats((1, 3, 10, 10), dtype=BRAIN)),
    "two_open": Module(
        TwoOpen, floats((3, 16), (3, 6)), open_dims=lambda: tuple({0: d} for d in [dims("batch")[0]] * 2)
    ),
    "state_counter": Module(Counter, floats((4, 16))),
    "state_window": Module(Ring, floats((1, 4, 6))),
    "dict_out": Module(DictOut, floats((4, 16))),
    "nested_in": Module(
        NestedIn,
        lambda: (
            {"x": torch.randn(4, 16), "y": torch.randn(4, 16)},
            (torch.randn(4, 8), torch.randn(8)),
            1.5,
        ),
    ),
    "types": Module(
        Types,
        lambda: (ids(2, 5).int(), torch.tensor([[True, False, True, True, False]] * 2), torch.randn(3).double()),
    ),
    "scalars": Module(Scalars, lambda: (torch.randn(4, 16), torch.tensor(0.7))),
    "passes_through": Module(PassesThrough, floats((4, 16), (1, 3))),
    "embedding": Module(lambda: nn.Embedding(40, 16), lambda: (ids(2, 6),)),
    "two_tables": Module(TwoTables, lambda: (ids(2, 6),)),
}
