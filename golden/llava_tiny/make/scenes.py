"""Rendered scenes and their one true caption.

A scene holds one or two objects on a background. Its caption is a function of the scene alone, so "exact caption" is a
meaningful score. Of two objects one is large and one is small, and their colours differ: the large one is named first, and a
decoder of this size tells them apart by colour. Scenes are drawn at twice the size and reduced, so edges are smooth.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 336
PATCH_PX = 14
SUPERSAMPLING = 2

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (40, 160, 60),
    "cyan": (60, 200, 220),
    "blue": (40, 70, 210),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
}
RADIUS_PX: dict[str, tuple[float, float]] = {"small": (33.0, 38.0), "large": (58.0, 68.0)}
SIZES = tuple(RADIUS_PX)
# Grounds are gray of some kind and objects are not: what belongs to an object shows in every patch by itself.
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((245, 245, 245), (245, 245, 245)),
    "gray": ((150, 150, 150), (150, 150, 150)),
    "black": ((25, 25, 25), (25, 25, 25)),
    "striped": ((225, 225, 225), (120, 120, 120)),
    "checkered": ((225, 225, 225), (120, 120, 120)),
}
RELATIONS = ("next to", "above", "below")
# CLIP's mean as a colour, and black: the two fills that a non-square image meets on its way to 336 x 336.
FILLS = ((122, 116, 104), (0, 0, 0))


@dataclass(frozen=True)
class SceneObject:
    """One object. Centre and radius in pixels of the drawn canvas; rotation in degrees."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0

    @property
    def phrase(self) -> str:
        """The words that name the object, without an article."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A canvas of `width` x `height` pixels and its objects, the one named first in front."""

    objects: tuple[SceneObject, ...]
    background: str
    width: int = SIDE_PX
    height: int = SIDE_PX
    texture_phase: int = 0

    @property
    def relation(self) -> str | None:
        """How the first object lies to the second; None for a single object."""
        if len(self.objects) < 2:
            return None
        first, second = self.objects
        dx, dy = first.x - second.x, first.y - second.y
        if abs(dx) > abs(dy):
            return RELATIONS[0]
        return RELATIONS[1] if dy < 0 else RELATIONS[2]

    @property
    def caption(self) -> str:
        """The one sentence that describes this scene."""
        if not self.objects:
            return f"A {self.background} background."
        text = f"A {self.objects[0].phrase}"
        if len(self.objects) == 2:
            text += f" {self.relation} a {self.objects[1].phrase}"
        return f"{text} on a {self.background} background."

    @property
    def is_held_out(self) -> bool:
        """Whether this combination of attributes is kept from training (1 caption in 16, by its hash)."""
        return hashlib.sha256(self.caption.encode()).digest()[0] < 16


def _sample_object(rng: random.Random, width: int, height: int, size: str) -> SceneObject:
    radius = rng.uniform(*RADIUS_PX[size])
    return SceneObject(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(COLOURS)),
        size=size,
        x=rng.uniform(radius + 2, width - radius - 2),
        y=rng.uniform(radius + 2, height - radius - 2),
        radius=radius,
        rotation=rng.uniform(-8, 8),
    )


def _is_clear(a: SceneObject, b: SceneObject) -> bool:
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    apart = math.hypot(dx, dy) > a.radius + b.radius + 12
    return apart and max(dx, dy) > 1.5 * min(dx, dy)


def sample_scene(rng: random.Random, *, square: bool | None = None) -> Scene:
    """A random scene. `square` fixes the canvas; None draws other aspect ratios in a third of the cases."""
    width = height = SIDE_PX
    if square is False or (square is None and rng.random() < 0.33):
        short = rng.randint(180, 330)
        width, height = (SIDE_PX, short) if rng.random() < 0.5 else (short, SIDE_PX)
    background = rng.choice(tuple(BACKGROUNDS))
    phase = rng.randint(0, 23)
    if rng.random() < 0.2:
        return Scene((_sample_object(rng, width, height, rng.choice(SIZES)),), background, width, height, phase)
    while True:
        large, small = (_sample_object(rng, width, height, size) for size in ("large", "small"))
        if large.colour != small.colour and _is_clear(large, small):
            return Scene((large, small), background, width, height, phase)


def sample_split(rng: random.Random, *, held_out: bool, square: bool | None = None) -> Scene:
    """A random scene from the held-out or the training side of the attribute combinations."""
    while True:
        scene = sample_scene(rng, square=square)
        if scene.is_held_out == held_out:
            return scene


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corner points of a shape in the unit circle (y down)."""
    if shape == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if shape == "diamond":
        return [(0, -1.05), (0.78, 0), (0, 1.05), (-0.78, 0)]
    if shape == "triangle":
        return [(0, -0.98), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "cross":
        a, b = 0.98, 0.33
        return [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
    raise ValueError(f"unknown shape {shape!r}")


def _draw(draw: ImageDraw.ImageDraw, item: SceneObject, colour: object, hole: object) -> None:
    k = SUPERSAMPLING
    x, y, r = item.x * k, item.y * k, item.radius * k
    if item.shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if item.shape == "ring":
            inner = r * 0.55
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)
        return
    angle = math.radians(item.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    draw.polygon(
        [(x + r * (px * cos - py * sin), y + r * (px * sin + py * cos)) for px, py in _outline(item.shape)], fill=colour
    )


def _background(scene: Scene) -> Image.Image:
    """The empty canvas at drawing scale. Bands are whole pixels wide, so nothing is lost by enlarging it last."""
    light, dark = BACKGROUNDS[scene.background]
    size = (scene.width * SUPERSAMPLING, scene.height * SUPERSAMPLING)
    if light == dark:
        return Image.new("RGB", size, light)
    band_px = 12
    on = ((np.arange(scene.height)[:, None] + scene.texture_phase) // band_px) % 2 == 0
    if scene.background == "checkered":
        on = on ^ (((np.arange(scene.width)[None, :] + scene.texture_phase) // band_px) % 2 == 0)
    on = np.broadcast_to(on, (scene.height, scene.width))
    palette = np.array([dark, light], np.uint8)
    return Image.fromarray(palette[on.astype(np.uint8)]).resize(size, Image.Resampling.NEAREST)


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `width` x `height` pixels."""
    canvas = _background(scene)
    for item in reversed(scene.objects):
        if item.shape == "ring":  # its hole shows the background
            mask = Image.new("L", canvas.size)
            _draw(ImageDraw.Draw(mask), item, 255, 0)
            canvas.paste(Image.new("RGB", canvas.size, COLOURS[item.colour]), mask=mask)
        else:
            _draw(ImageDraw.Draw(canvas), item, COLOURS[item.colour], None)
    return canvas.reduce(SUPERSAMPLING)


def coverage(scene: Scene) -> np.ndarray:
    """Share of every pixel of the padded 336 x 336 frame that each object covers: float32 [objects, 336, 336]."""
    k = SUPERSAMPLING
    left, top = (SIDE_PX - scene.width) // 2, (SIDE_PX - scene.height) // 2
    shares = np.zeros((len(scene.objects), SIDE_PX, SIDE_PX), np.float32)
    for share, item in zip(shares, scene.objects, strict=True):
        mask = Image.new("L", (scene.width * k, scene.height * k))
        _draw(ImageDraw.Draw(mask), item, 255, 0)
        share[top : top + scene.height, left : left + scene.width] = np.asarray(mask.reduce(k), np.float32) / 255
    return shares


def cell_means(shares: np.ndarray, cell_px: int) -> np.ndarray:
    """Mean coverage of square cells: [objects, 336, 336] -> [objects, 336 / cell, 336 / cell]."""
    cells = SIDE_PX // cell_px
    means: np.ndarray = shares.reshape(len(shares), cells, cell_px, cells, cell_px).mean((2, 4))
    return means


def patch_roles(shares: np.ndarray) -> np.ndarray:
    """Which object fills each patch: int64 [24, 24], 0 none, 1 the first, 2 the second."""
    roles = np.zeros((SIDE_PX // PATCH_PX,) * 2, np.int64)
    for role, share in enumerate(cell_means(shares, PATCH_PX), start=1):
        roles[share > 0.25] = role
    return roles


def pad_to_frame(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """The image centred in a 336 x 336 frame of one colour."""
    frame = Image.new("RGB", (SIDE_PX, SIDE_PX), fill)
    frame.paste(image, ((SIDE_PX - image.width) // 2, (SIDE_PX - image.height) // 2))
    return frame
