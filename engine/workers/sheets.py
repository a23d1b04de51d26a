"""A page as it is laid before Tesseract: gray, upright, straight, dark on light, its letters of one size.

Rule: what is done to a page is decided by what is seen on it, never by what its file claims: tags of resolution are
often wrong. Looking costs a few hundredths of what reading costs, and no sheet grows beyond MAX_SHEET_PIXELS.

    picture -> inverted? -> uneven light? -> skew, height of letters -> scale, straighten, smooth -> Sheet
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy
import PIL.Image
from PIL import ImageFilter

from engine.workers.reading import MAX_SHEET_PIXELS, PAGE_DPI

if TYPE_CHECKING:
    from numpy.typing import NDArray

    #: A gray picture: one byte a pixel, rows from the top, 0 is black.
    Picture: TypeAlias = NDArray[numpy.uint8]
    Ink: TypeAlias = NDArray[numpy.bool_]

#: A pixel is ink when it is darker than this share of the paper (the middle gray of all), or the paper than this share
#: of it, and a picture with fewer such pixels than one in 20,000 is blank: at 200 dpi that is 190 of an A4 page, less
#: than two letters of 10 points. Dust on scans has more and is read as nothing.
_INK_GRAY: Final = 0.8
_BLANK_SHARE: Final = 1 / 20_000
#: Paper darker than this is the ground of light letters.
_DARK_PAPER: Final = 100

#: Height of a line's ink, in pixels, that letters are brought to: print of 10 points has it at 200 dpi. Heights between
#: the two bounds stay: scaling costs sharpness. Lower letters cost errors (13: up to 2.4 % of a page, by lost lines),
#: higher ones time.
LETTER_PIXELS: Final = 20
_FITTING_LETTERS: Final = (16, 24)
#: Sides are enlarged at most so many times, and to so many pixels in all (A4 at 300 dpi): smaller is no letters.
_MOST_ENLARGED: Final = 3.0
_MOST_ENLARGED_PIXELS: Final = 8_700_000

#: The page is cut into so many upright strips: narrow enough that lines do not run together where they climb a little,
#: wide enough for some letters.
_STRIPS: Final = 12
_LEAST_STRIP: Final = 40
#: A row of a strip belongs to a line where so much of it is ink; less is dust.
_INK_OF_ROW: Final = 0.03
#: Pixels: lower is dust and dashes. Of the page's height: higher is pictures and frames.
_LEAST_LETTERS: Final = 5
_MOST_LETTERS: Final = 1 / 8
#: Print of one page differs by less, headlines aside.
_MUCH_LOWER: Final = 2
#: So many pieces of lines have to be seen, or their height says nothing.
_FEW_PIECES: Final = 6

#: Degrees. Tesseract loses whole lines from about 1 degree on (31 % of a page at 1.5), all at 5, and its confidence
#: says nothing of it. Beyond the most, text is not skewed but turned.
_LEAST_SKEW: Final = 0.4
_MOST_SKEW: Final = 10.0
#: Width that skew is looked for at, and edges of ink that are looked at: more do not make it more certain.
_SKEW_WIDTH: Final = 800
_FEW_EDGES: Final = 200
_ENOUGH_EDGES: Final = 40_000
#: How much sharper lines have to stand out when they are straightened.
_SHARPER: Final = 1.15

#: More of a page than this is ink only when it is light letters on dark ground.
_INVERTED_SHARE: Final = 0.6
#: The light on paper is uneven when its darkest twentieth has less than this share of its brightest: photographs have
#: .6 to .8, scans above .95.
_EVEN: Final = 0.88
#: Light is looked at in tiles of so many to the page's width, each taller than a line, in so many cells a side.
_TILES: Final = 48
_LEAST_TILE: Final = 16
_CELLS: Final = 4
#: Ground darker than this is no paper, and not brightened further.
_DARKEST_PAPER: Final = 40
#: Rows that are converted at a time, where a conversion takes several times the memory of the picture.
_BAND_ROWS: Final = 256

#: Neighbours weigh a little in each pixel. It takes the grain off scans and closes the gaps of printed dots: receipts
#: 25.5 -> 22.2 % errors, noisy pages of 100 dpi .58 -> .45, nothing lost on clean ones.
_SMOOTH: Final = ((3, 3), (1, 2, 1, 2, 8, 2, 1, 2, 1))
#: Radius in pixels for a second look at letters of broken strokes: what it wins on bad receipts, small print loses.
_SMOOTHER: Final = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A gray page: one byte a pixel, row after row, 0 is black; `dpi` as if its letters were of 10 points.

    pieces  how many pieces of lines are seen on it: far more than its words means that lines were lost
    """

    gray: bytes
    width: int
    height: int
    dpi: int
    pieces: int

    def smoother(self) -> Sheet:
        """The same with the strokes of its letters run together."""
        image = PIL.Image.frombytes("L", (self.width, self.height), self.gray)
        gray = image.filter(ImageFilter.GaussianBlur(_SMOOTHER)).tobytes()
        return Sheet(gray=gray, width=self.width, height=self.height, dpi=self.dpi, pieces=self.pieces)

    def band(self, share: float) -> Sheet:
        """A share of its height, where most is written: enough to see whether it can be read."""
        pixels = numpy.frombuffer(self.gray, numpy.uint8).reshape(self.height, self.width)
        rows = min(self.height, max(4 * LETTER_PIXELS, round(self.height * share)))
        contrast = pixels[:, ::4].std(axis=1)
        sums = numpy.concatenate(([0.0], contrast.cumsum()))
        top = int((sums[rows:] - sums[:-rows]).argmax())
        cut = pixels[top : top + rows]
        return Sheet(gray=cut.tobytes(), width=self.width, height=rows, dpi=self.dpi, pieces=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is seen on a picture.

    letters  height of its lines' ink in pixels; 0: no lines are seen
    lower    the same if what is tall is no line: the edge of a sheet on a table, a headline
    pieces   of lines, as strips of the page show them
    skew     degrees that the lines climb; negative: they fall
    """

    letters: int
    pieces: int
    skew: float
    lower: int = 0

    @property
    def scale(self) -> float:
        """What brings the letters to LETTER_PIXELS."""
        low, high = _FITTING_LETTERS
        if not self.letters or low <= self.letters <= high:
            return 1.0
        return min(_MOST_ENLARGED, LETTER_PIXELS / self.letters)

    def nearer(self, lines_were_lost: bool) -> Look | None:
        """A second look that reduces the page less, never enlarging it: to the size of what is much lower than what
        this one measured, or, where lines were lost that it took for letters of twice the height, not at all."""
        if self.scale >= 1.0:
            return None
        if 0 < _MUCH_LOWER * self.lower <= self.letters:
            return replace(self, letters=max(self.lower, LETTER_PIXELS))
        return replace(self, letters=LETTER_PIXELS) if lines_were_lost and _MUCH_LOWER * self.scale <= 1.0 else None


def is_blank(picture: Picture) -> bool:
    """Nothing stands out from the paper, or so little that it is no letter."""
    counts = numpy.bincount(picture[::2, ::2].ravel(), minlength=256)
    seen = counts.cumsum()
    paper = int(numpy.searchsorted(seen, seen[-1] / 2))
    # Letters on coloured ground are darker than it or lighter.
    dark, light = (paper * _INK_GRAY, paper / _INK_GRAY) if paper >= _DARK_PAPER else (paper - 64, paper + 64)
    ink = seen[-1] - seen[min(255, int(light))] + (seen[int(dark)] if dark >= 0 else 0)
    return bool(ink < seen[-1] * _BLANK_SHARE)


def lighten(picture: Picture) -> Picture:
    """Dark letters on light, evenly lit paper; the picture itself where it is that already."""
    threshold = _threshold_of(picture)
    if (picture[::4, ::4] <= threshold).mean() > _INVERTED_SHARE:
        ink = picture <= threshold
        if len(_pieces(~ink)) > len(_pieces(ink)):
            picture = 255 - picture
    return _evened(picture)


def look_at(picture: Picture) -> Look:
    """What is seen on a picture of dark letters on light paper."""
    ink = picture <= _threshold_of(picture)
    skew = skew_of(ink)
    if skew:
        turned = PIL.Image.fromarray(ink.view(numpy.uint8)).rotate(-skew)
        ink = numpy.asarray(turned).view(numpy.bool_)
    pieces = _pieces(ink)
    lower = int(numpy.median(pieces)) if len(pieces) else 0
    return Look(letters=_letters_of(pieces), pieces=len(pieces), skew=skew, lower=lower)


def lay_out(picture: Picture, look: Look) -> Sheet:
    """The picture at a fitting size, straight and smooth."""
    image = PIL.Image.fromarray(picture)
    scale = fitting(look.scale, image.width * image.height)
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # Enlarging with anything sharper sharpens the grain too (.92 % errors on noisy pages of 100 dpi, .51 so).
        method = PIL.Image.Resampling.BILINEAR if scale > 1 else PIL.Image.Resampling.BICUBIC
        image = image.resize(size, method, reducing_gap=3.0)
    if look.skew:
        image = image.rotate(-look.skew, PIL.Image.Resampling.BILINEAR, fillcolor=255)
    image = image.filter(ImageFilter.Kernel(*_SMOOTH))
    return Sheet(gray=image.tobytes(), width=image.width, height=image.height, dpi=PAGE_DPI, pieces=look.pieces)


def fitting(scale: float, pixels: int) -> float:
    """A scale of both sides that stays within the bounds of a sheet."""
    most = _MOST_ENLARGED_PIXELS if scale > 1.0 else MAX_SHEET_PIXELS
    bounded = min(scale, math.sqrt(most / pixels))
    return max(1.0, bounded) if scale > 1.0 and pixels <= MAX_SHEET_PIXELS else bounded


def skew_of(ink: Ink) -> float:
    """Degrees that the lines climb, 0.0 where straightening would not make them stand out.

    Projection profiles (W. Postl 1986, "Detection of linear oblique structures and skew scan in digitized documents"):
    seen along the lines, rows full of ink and empty ones take turns. Only upper edges of ink count, so that pictures
    and dark surroundings weigh little.
    """
    step = max(1, ink.shape[1] // _SKEW_WIDTH)
    small = ink[::step, ::step]
    edges = numpy.nonzero(small[1:] & ~small[:-1])
    if len(edges[0]) < _FEW_EDGES:
        return 0.0
    every = -(-len(edges[0]) // _ENOUGH_EDGES)
    rows, columns = (places[::every].astype(numpy.float32) for places in edges)
    margin = math.ceil(small.shape[1] * math.tan(math.radians(_MOST_SKEW + 1)))

    def sharpness(degrees: float) -> float:
        seen = (rows + columns * math.tan(math.radians(degrees)) + margin).astype(numpy.int32)
        profile = numpy.bincount(seen, minlength=small.shape[0] + 2 * margin)
        return float((numpy.diff(profile).astype(numpy.float64) ** 2).sum())

    halves = int(_MOST_SKEW) * 2
    coarse = _best(sharpness, (half / 2 for half in range(-halves, halves + 1)))
    skew = _best(sharpness, (coarse + tenth / 10 for tenth in range(-4, 5)))
    if not _LEAST_SKEW <= abs(skew) < _MOST_SKEW or sharpness(skew) < _SHARPER * sharpness(0.0):
        return 0.0
    return skew


def _best(score: Callable[[float], float], candidates: Iterable[float]) -> float:
    return max(candidates, key=score)


def _threshold_of(picture: Picture) -> int:
    """Grays up to here are ink (N. Otsu 1979, "A threshold selection method from gray-level histograms")."""
    counts = numpy.bincount(picture[::3, ::3].ravel(), minlength=256).astype(numpy.float64)
    below, moments = counts.cumsum(), (counts * numpy.arange(256)).cumsum()
    parts = below * (below[-1] - below)
    between = (moments[-1] * below / below[-1] - moments) ** 2 / numpy.maximum(parts, 1.0)
    return int(numpy.where(parts > 0, between, 0.0).argmax())


def _pieces(ink: Ink) -> NDArray[numpy.int64]:
    """The heights, in pixels, of the pieces of lines that upright strips of the page show, in rising order."""
    height, width = ink.shape
    strip = min(width, max(_LEAST_STRIP, width // _STRIPS))
    count = width // strip
    profile = ink[:, : count * strip].reshape(height, count, strip).sum(2, dtype=numpy.int32)
    inked = numpy.zeros((height + 2, count), numpy.int8)
    inked[1:-1] = profile >= max(2.0, _INK_OF_ROW * strip)
    steps = numpy.diff(inked, axis=0).T
    heights = numpy.nonzero(steps == -1)[1] - numpy.nonzero(steps == 1)[1]
    return numpy.sort(heights[(heights >= _LEAST_LETTERS) & (heights <= height * _MOST_LETTERS)])


def _letters_of(pieces: NDArray[numpy.int64]) -> int:
    """Their middle height, weighed by height, as dashes and dust are many but low; 0: too few to say."""
    if len(pieces) < _FEW_PIECES:
        return 0
    weights = pieces.cumsum()
    return int(pieces[numpy.searchsorted(weights, weights[-1] / 2)])


def _evened(picture: Picture) -> Picture:
    """The picture divided by the light that falls on its paper, where that is uneven; else the picture itself."""
    height, width = picture.shape
    tile = max(_LEAST_TILE, width // _TILES)
    cells = (-(-width // tile) * _CELLS, -(-height // tile) * _CELLS)
    if cells[0] > width or cells[1] > height:
        return picture
    every = 2 if cells[0] * 4 <= width and cells[1] * 4 <= height else 1
    light = PIL.Image.fromarray(picture[::every, ::every]).resize(cells, PIL.Image.Resampling.BOX)
    light = light.filter(ImageFilter.MaxFilter(2 * _CELLS + 1))
    dim, bright = numpy.percentile(numpy.asarray(light), (5, 95))
    if dim >= _EVEN * bright:
        return picture
    light = light.filter(ImageFilter.BoxBlur(_CELLS)).resize((width, height), PIL.Image.Resampling.BILINEAR)
    lit, evened = numpy.asarray(light), numpy.empty_like(picture)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        ground = numpy.maximum(lit[rows], _DARKEST_PAPER)
        evened[rows] = numpy.minimum(picture[rows].astype(numpy.uint16) * numpy.uint16(255) // ground, 255)
    return evened


def turned(picture: Picture, quarters: int) -> Picture:
    """Turned counter-clockwise by so many quarters."""
    return numpy.ascontiguousarray(numpy.rot90(picture, quarters))
