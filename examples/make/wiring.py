"""Sets the text encoder by construction, not by training: a real CLIP text model whose weights are written down.

Its 64 numbers a word are fields with a meaning. The word table says what each word of the world is (a colour's red,
green and blue, a shape, a place, ...); words it does not know get a random name, so that they can be taught. Three
layers of attention read the caption: the first notes at every word whether "of" or "with" stood before it and which
colour and place were named last; the second fetches the first thing, the thing below or beside it, the thing inside and
the background; the third the relation, the size or pattern, and names. So every word after the caption, the padding
above all, holds the whole scene. The other nine layers, random and small, hardly change anything.
"""

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from examples.make import world

WIDTH = 64
RGB, IS_COLOUR, SHAPE, IS_SHAPE = slice(0, 3), slice(3, 4), slice(4, 13), slice(13, 14)
PLACE, IS_PLACE, SIZE, PATTERN = slice(14, 16), slice(16, 17), slice(17, 18), slice(18, 20)
IS_OF, IS_WITH, IS_BACKGROUND, IS_BEGIN = slice(20, 21), slice(21, 22), slice(22, 23), slice(23, 24)
UP, NAME, DOWN, IS_NAME, POSITION = slice(24, 25), slice(25, 32), slice(32, 33), slice(33, 34), slice(34, 35)
OF_BEFORE, WITH_BEFORE, LAST_RGB, LAST_PLACE = slice(35, 36), slice(36, 37), slice(37, 40), slice(40, 42)
BACKGROUND_RGB, SECOND_RGB, SECOND_SHAPE = slice(42, 45), slice(45, 48), slice(48, 57)
INSIDE_RGB, INSIDE_SHAPE, IS_KIND = slice(57, 60), slice(60, 63), slice(63, 64)
UNTRAINED = (NAME, IS_NAME)
"""What the world's captions never set: the UNet begins with no reaction to it."""

BALLAST = 4.0  # the same in every word, so that LayerNorm scales all words nearly alike
COLOUR_LENGTH = 10.0
SHARPNESS = 120.0
SMALL = 0.02

Field = slice
Head = tuple[dict[int, float], tuple[tuple[Field, Field], ...]]
"""What a head looks for (number in the word -> weight; "begin" answers when nothing fits), and what it moves."""


def _head(moves: tuple[tuple[Field, Field], ...], wanted: dict[int, float]) -> Head:
    return wanted, moves


def _of(field: Field) -> int:
    return int(field.start)


HEADS: dict[int, tuple[Head, ...]] = {
    0: (
        _head(((IS_OF, OF_BEFORE),), {_of(IS_OF): 1, _of(IS_BEGIN): 0.5}),
        _head(((IS_WITH, WITH_BEFORE),), {_of(IS_WITH): 1, _of(IS_BEGIN): 0.5}),
        _head(((RGB, LAST_RGB),), {_of(IS_COLOUR): 3, _of(IS_BEGIN): 2, _of(POSITION): 2}),
        _head(((PLACE, LAST_PLACE),), {_of(IS_PLACE): 3, _of(IS_BEGIN): 2, _of(POSITION): 2}),
    ),
    1: (
        _head(
            ((LAST_RGB, RGB), (SHAPE, SHAPE)),
            {_of(IS_SHAPE): 1, _of(OF_BEFORE): -1, _of(WITH_BEFORE): -1, _of(IS_BEGIN): 0.5},
        ),
        _head(
            ((LAST_RGB, SECOND_RGB), (SHAPE, SECOND_SHAPE)),
            {_of(IS_SHAPE): 1, _of(OF_BEFORE): 1, _of(WITH_BEFORE): -1, _of(IS_BEGIN): 1.5},
        ),
        _head(
            ((LAST_RGB, INSIDE_RGB), (SHAPE, INSIDE_SHAPE)),
            {_of(IS_SHAPE): 1, _of(WITH_BEFORE): 1, _of(IS_BEGIN): 1.5},
        ),
        _head(((LAST_RGB, BACKGROUND_RGB),), {_of(IS_BACKGROUND): 1, _of(IS_BEGIN): 0.5}),
    ),
    2: (
        _head(((LAST_PLACE, PLACE),), {_of(IS_OF): 1, _of(IS_BEGIN): 0.5}),
        _head(((SIZE, SIZE), (PATTERN, PATTERN)), {_of(IS_KIND): 1, _of(IS_BEGIN): 0.5}),
        _head(((NAME, NAME),), {_of(IS_NAME): 1, _of(IS_BEGIN): 0.5}),
    ),
}


def simplex(points: int) -> Tensor:
    """As many points of equal distance from each other around 0, [points, points - 1]."""
    left_PP, lengths_P, _ = torch.linalg.svd(torch.eye(points) - 1 / points)
    corners = left_PP[:, :-1] * lengths_P[:-1]
    return corners / corners.std()


def word_table(ids_R: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """What each word is, [R, 64]; the first token of a word says it."""
    names_VN = torch.randn(len(tokenizer), NAME.stop - NAME.start, generator=torch.Generator().manual_seed(7))
    table_RD = torch.zeros(len(ids_R), WIDTH)
    table_RD[:, NAME], table_RD[:, IS_NAME] = names_VN[ids_R], 1
    row_of = {int(token): row for row, token in enumerate(ids_R)}

    def say(word: str, *fields: tuple[Field, Tensor | tuple[float, ...]]) -> None:
        tokens = [word] if word in tokenizer.all_special_tokens else tokenizer.tokenize(word)
        row = row_of.get(tokenizer.convert_tokens_to_ids(tokens)[0])
        if row is None:
            return
        table_RD[row] = 0
        for field, value in fields:
            table_RD[row, field] = torch.as_tensor(value, dtype=torch.float)

    for word in ("a", "an", ",", "on", "inside", tokenizer.eos_token):
        say(word)
    say(tokenizer.bos_token, (IS_BEGIN, (1,)))
    say("of", (IS_OF, (1,)))
    say("with", (IS_WITH, (1,)))
    say("background", (IS_BACKGROUND, (1,)))
    for word, rgb in zip(world.COLOURS, _colours(), strict=True):
        say(word, (RGB, rgb), (IS_COLOUR, (1,)), (NAME, _filler(rgb)))
    for word, corner in zip(world.SHAPES, simplex(len(world.SHAPES)), strict=True):
        say(word, (SHAPE, corner), (IS_SHAPE, (1,)))
    for word, offset in world.OFFSETS.items():
        say(word, (PLACE, offset), (IS_PLACE, (1,)))
    for word, size in (("small", -1), ("large", 1)):
        say(word, (SIZE, (size,)), (IS_KIND, (1,)))
    for word, pattern in (("striped", (1, 0)), ("dotted", (0, 1))):
        say(word, (PATTERN, pattern), (IS_KIND, (1,)))
    return table_RD


def _colours() -> Tensor:
    rgb_N3 = torch.tensor(list(world.COLOURS.values())).float()
    return (rgb_N3 - rgb_N3.mean(0)) / rgb_N3.std(0)


def _filler(rgb: Tensor) -> Tensor:
    """Brings every colour to one sum and length, so that the last one named wins and not the brightest."""
    width = NAME.stop - NAME.start
    even_N = torch.tensor([(-1.0) ** i for i in range(width - 1)] + [0.0]) / (width - 1) ** 0.5
    rest = COLOUR_LENGTH - rgb @ rgb - rgb.sum() ** 2 / width
    return -rgb.sum() / width + even_N * rest.sqrt()


def _inside_of_shape() -> Tensor:
    """[9, 3]: the four shapes that can stand inside another, told apart by three numbers."""
    four = [world.SHAPES.index(shape) for shape in world.INSIDES]
    return torch.linalg.lstsq(simplex(len(world.SHAPES))[four], simplex(len(four))).solution


@torch.no_grad()
def wire(text: CLIPTextModel, ids_R: Tensor, tokenizer: CLIPTokenizer) -> None:
    """Writes all weights of a text encoder whose rows are the words of ids_R."""
    make = torch.Generator().manual_seed(7)
    state = dict(text.named_parameters())
    for name, param in state.items():
        if name.endswith("bias"):
            param.zero_()
        elif "norm" in name:
            param.fill_(1.0)
    next(v for k, v in state.items() if "token_embedding" in k).copy_(word_table(ids_R, tokenizer))
    positions_SD = next(v for k, v in state.items() if "position_embedding" in k)
    positions_SD.zero_()
    positions_SD[:, POSITION] = torch.arange(len(positions_SD)).clamp(max=30)[:, None] * 0.02
    positions_SD[:, UP], positions_SD[:, DOWN] = BALLAST, -BALLAST
    prefix = next(k for k in state if k.endswith("layers.0.mlp.fc1.weight")).removesuffix("0.mlp.fc1.weight")
    for layer in range(12):
        at = f"{prefix}{layer}."
        query_DD, key_DD, value_DD, out_DD = (
            state[f"{at}self_attn.{part}_proj.weight"] for part in ("q", "k", "v", "out")
        )
        for param in (query_DD, key_DD, value_DD):
            param.copy_(torch.randn(WIDTH, WIDTH, generator=make) / 8)
        out_DD.copy_(torch.randn(WIDTH, WIDTH, generator=make) / 8 * SMALL)
        for head, (wanted, moves) in enumerate(HEADS.get(layer, ())):
            rows = slice(16 * head, 16 * head + 16)
            query_DD[rows], key_DD[rows], value_DD[rows], out_DD[:, rows] = 0, 0, 0, 0
            state[f"{at}self_attn.q_proj.bias"][rows.start] = SHARPNESS
            for number, weight in wanted.items():
                key_DD[rows.start, number] = weight
            _move(value_DD, out_DD, rows.start, moves)
        state[f"{at}mlp.fc1.weight"].copy_(torch.randn(256, WIDTH, generator=make) / 8)
        state[f"{at}mlp.fc2.weight"].copy_(torch.randn(WIDTH, 256, generator=make) / 16 * SMALL)


def _move(value_DD: Tensor, out_DD: Tensor, row: int, moves: tuple[tuple[Field, Field], ...]) -> None:
    """Lets the head that begins at `row` carry fields from the word it looks at to the word that looks."""
    for source, target in moves:
        width = target.stop - target.start
        read = _inside_of_shape().T if target == INSIDE_SHAPE else torch.eye(width)
        value_DD[row : row + width, source] = read
        out_DD[target, row : row + width] = 0.75 * torch.eye(width)  # LayerNorm made what is read larger
        row += width


@torch.no_grad()
def forget_names(unet_parameters: list[tuple[str, Tensor]]) -> None:
    """Begins the cross-attention anew, blind for names, so that an untaught word changes nothing."""
    for name, param in unet_parameters:
        if "attn2.to_k" in name or "attn2.to_v" in name:
            torch.nn.init.normal_(param, std=0.08)
            for field in UNTRAINED:
                param[:, field] = 0
