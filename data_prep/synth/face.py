"""A parametric face: twelve actions move it, an identity paints it, a camera looks at it.

Coordinates of a face: the origin between eyes and mouth, x to the right, y down, half the face's width is 1.
Geometry is computed for all frames at once; only the filling of polygons runs frame by frame.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np

FRAME_SIZE = 128
"""Width and height of a frame, pixels."""
_SUBPIXEL_BITS = 4
_UNIT = 36.0  # pixels per face unit at camera scale 1

Colour = tuple[int, int, int]
Value = TypeVar("Value")


class Face(NamedTuple, Generic[Value]):
    """Actions of a face: Values for one moment, [n] arrays for n frames. 0 is at rest, about 1 full."""

    brow_raise: Value
    brow_knit: Value
    brow_slant: Value  # inner ends up, outer ends down
    eye_open: Value
    gaze_x: Value
    gaze_y: Value
    mouth_curve: Value  # corners up
    mouth_open: Value
    mouth_width: Value
    jaw: Value
    head_tilt: Value
    head_nod: Value  # down


ACTIONS = Face._fields
"""Names of the face's actions, in the order of `Face`."""

EXPRESSIONS = {
    "smile": Face(0.15, 0.0, 0.0, -0.25, 0.0, 0.0, 1.0, 0.25, 0.8, 0.1, 0.0, 0.0),
    "neutral": Face(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "frown": Face(-0.6, 1.15, 0.0, -0.4, 0.0, 0.0, -0.15, 0.0, -0.7, 0.0, 0.0, 0.15),
    "sad": Face(0.1, 0.2, 1.0, -0.45, 0.0, 0.8, -1.0, 0.0, -0.1, 0.0, 0.4, 0.6),
    "wide": Face(1.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9, -0.4, 0.8, 0.0, -0.2),
}
"""Expression -> its typical actions."""

# How much an action wanders between clips of one expression: head and gaze move freely, the rest little.
_SPREAD = Face(0.08, 0.06, 0.06, 0.08, 0.25, 0.10, 0.08, 0.04, 0.08, 0.04, 0.30, 0.15)


class FaceIdentity(NamedTuple):
    """What stays the same whenever a person is seen."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    shirt: Colour
    hair_style: int  # 0 shaved, 1 short, 2 long
    width: float
    height: float
    eye_size: float
    eye_distance: float
    brow_thickness: float
    brow_rest: float
    mouth_rest: float
    nose: float


class Camera(NamedTuple):
    """How a clip is filmed."""

    x: float  # of the face's centre, fraction of the frame
    y: float
    scale: float
    brightness: float
    side_light: float  # -1 from the left .. 1 from the right
    background: Colour
    noise: float  # standard deviation, grey levels


def draw_identity(rng: np.random.Generator) -> FaceIdentity:
    """A person's looks."""
    tone = rng.uniform(0, 1)
    skin = (1 - tone) * np.array([248, 214, 186]) + tone * np.array([128, 84, 58]) + rng.uniform(-8, 8, 3)
    hairs = np.array([(30, 24, 22), (78, 50, 30), (142, 96, 52), (206, 172, 106), (150, 150, 150), (120, 48, 26)])
    irises = np.array([(60, 40, 25), (90, 62, 34), (60, 96, 140), (74, 112, 74), (96, 100, 108)])
    lips = 0.6 * skin + 0.4 * np.array([176, 46, 58]) + rng.uniform(-10, 10, 3)
    return FaceIdentity(
        skin=_colour(skin),
        hair=_colour(hairs[rng.integers(len(hairs))] + rng.uniform(-12, 12, 3)),
        iris=_colour(irises[rng.integers(len(irises))] + rng.uniform(-10, 10, 3)),
        lips=_colour(lips),
        shirt=_colour(rng.uniform(30, 220, 3)),
        hair_style=int(rng.integers(3)),
        width=float(rng.uniform(0.92, 1.08)),
        height=float(rng.uniform(0.94, 1.08)),
        eye_size=float(rng.uniform(0.9, 1.12)),
        eye_distance=float(rng.uniform(0.93, 1.07)),
        brow_thickness=float(rng.uniform(0.8, 1.25)),
        brow_rest=float(rng.uniform(-0.12, 0.12)),
        mouth_rest=float(rng.uniform(-0.1, 0.1)),
        nose=float(rng.uniform(0.85, 1.2)),
    )


def draw_camera(rng: np.random.Generator) -> Camera:
    """Framing, light and background of a clip."""
    return Camera(
        x=float(rng.uniform(0.45, 0.55)),
        y=float(rng.uniform(0.45, 0.52)),
        scale=float(rng.uniform(0.9, 1.15)),
        brightness=float(rng.uniform(0.8, 1.1)),
        side_light=float(rng.uniform(-0.5, 0.5)),
        background=_colour(rng.uniform(40, 215, 3)),
        noise=float(rng.uniform(0.5, 2.0)),
    )


def draw_actions(expression: str, rng: np.random.Generator) -> Face[float]:
    """The expression's typical actions, between 85 and 115 percent strong and varied a little."""
    strength = rng.uniform(0.85, 1.15)
    wander = np.clip(rng.standard_normal(len(ACTIONS)), -2, 2)
    return Face(*(np.array(EXPRESSIONS[expression]) * strength + wander * np.array(_SPREAD)).tolist())


def animate(
    face: Face[float], loudness: np.ndarray, frames: np.ndarray, rate: float, rng: np.random.Generator
) -> Face[np.ndarray]:
    """Let a face live: it holds its expression, breathes, blinks, glances, and its lips follow the voice.

    Args:
      face: the clip's expression, floats.
      loudness: [n] level of the voice at each frame, 0..1.
      frames: [n] numbers of the frames wanted (any subset of a clip gives the same pictures).
      rate: frames a second.
      rng: source of the timings.

    Returns:
      Face of [n] arrays.
    """
    time = frames / rate
    actions = {name: np.full(len(time), value) for name, value in zip(ACTIONS, face, strict=True)}
    phase = rng.uniform(0, 2 * np.pi, 4)
    swell = 0.92 + 0.08 * np.sin(2 * np.pi * 0.4 * time + phase[0])
    for name in ("brow_raise", "brow_knit", "brow_slant", "eye_open", "mouth_curve", "mouth_width"):
        actions[name] = actions[name] * swell
    actions["head_tilt"] = actions["head_tilt"] + 0.15 * np.sin(2 * np.pi * 0.3 * time + phase[1])
    actions["head_nod"] = actions["head_nod"] + 0.10 * np.sin(2 * np.pi * 0.5 * time + phase[2]) + 0.15 * loudness
    actions["gaze_x"] = actions["gaze_x"] + 0.3 * np.sign(np.sin(2 * np.pi * 0.45 * time + phase[3]))
    actions["mouth_open"] = actions["mouth_open"] * (0.75 + 0.25 * loudness) + 0.28 * loudness
    actions["jaw"] = actions["jaw"] + 0.25 * loudness
    since_blink = (time + rng.uniform(0, 3)) % rng.uniform(2.2, 3.4)
    shut = np.clip(1 - np.abs(since_blink - 0.08) / 0.08, 0, 1)
    actions["eye_open"] = actions["eye_open"] * (1 - shut) - 0.95 * shut
    return Face(**actions)


def draw_faces(
    face: Face[np.ndarray], identity: FaceIdentity, camera: Camera, numbers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint frames.

    Args:
      face: actions as [n] arrays.
      identity: who is seen.
      camera: how.
      numbers: [n] the frames' numbers in the clip; they pick the grain.
      rng: source of the grain.

    Returns:
      (uint8 [n, 128, 128, 3] RGB, float64 [n, 4] face boxes x0, y0, x1, y1 in pixels).
    """
    import cv2  # only drawing needs it: a face's actions are drawn by lot without it

    count = len(face.head_tilt)
    angle = 0.16 * face.head_tilt
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], -2)
    size = _UNIT * camera.scale
    centre = np.stack([FRAME_SIZE * camera.x + 6 * angle, FRAME_SIZE * camera.y + 2.0 * face.head_nod], -1)

    def place(points: np.ndarray) -> np.ndarray:
        """Face coordinates [k, 2] or [n, k, 2] -> fixed-point pixels int32 [n, k, 2]."""
        pixels = np.broadcast_to(points, (count, *points.shape[-2:])) @ turn * size + centre[:, None]
        return np.round(pixels * 2**_SUBPIXEL_BITS).astype(np.int32)

    layers = [(place(points), colour) for points, colour in _layers(face, identity)]
    canvas = _backdrop(identity, camera)
    light = _light(camera)
    grain = camera.noise * rng.standard_normal((FRAME_SIZE + 32, FRAME_SIZE + 32, 3), np.float32)
    grain = np.clip(8 + grain, 0, 16).astype(np.uint8)  # only ever adds: bytes are several times faster here
    shifts = rng.integers(0, 32, (numbers.max() + 1, 2))[numbers]
    frames = np.empty((count, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    for i in range(count):
        picture = canvas.copy()
        for points, colour in layers:
            cv2.fillPoly(picture, [points[i]], colour, cv2.LINE_AA, _SUBPIXEL_BITS)
        y, x = shifts[i]
        cv2.multiply(picture, light, picture, scale=1 / 128)
        cv2.add(picture, grain[y : y + FRAME_SIZE, x : x + FRAME_SIZE], frames[i])
    reach = np.array([-1.25, -1.2, 1.25, 1.3]) * size
    return frames, np.concatenate([centre, centre], -1) + reach


Layer = tuple[np.ndarray, Colour]
"""A filled shape: points [k, 2], or [n, k, 2] if it moves, and its colour."""


def _layers(face: Face[np.ndarray], person: FaceIdentity) -> list[Layer]:
    """A head's shapes from back to front."""
    shadow = _shade(person.skin, 0.78)
    width, height = 0.86 * person.width, 1.06 * person.height
    front = 0.10 * face.head_nod  # nodding moves everything on the head's front
    drop = 0.12 * face.jaw
    head = _ellipse(0, 0, width, height, 40)
    chin = np.clip(head[:, 1], 0, None) / height
    nose = np.array([[0.02, -0.05], [-0.13 * person.nose, 0.24], [0.0, 0.29], [0.13 * person.nose, 0.25]])
    layers: list[Layer] = []
    if person.hair_style == 2:
        layers.append((_ellipse(0, 0.05, width + 0.2, height + 0.25), person.hair))
    layers.extend((_ellipse(side * width, 0.05, 0.12, 0.2), shadow) for side in (-1, 1))
    layers.append((_lowered(head, drop[:, None] * chin), person.skin))
    if person.hair_style:
        crown = _ellipse(0, -0.02, width + 0.05, height + 0.07, 40, np.pi * 1.06, np.pi * 1.94)
        x = np.linspace(1, -1, 16)
        fringe = np.stack([0.97 * width * x, height * (0.24 * x**2 - 0.90)], -1)
        layers.append((np.concatenate([crown, fringe]), person.hair))
    layers.append((_lowered(_ribbon(nose, 0.025), front[:, None]), shadow))
    for side in (-1, 1):
        layers.extend(_eye(face, person, side, front))
        layers.append((_brow(face, person, side, front), _shade(person.hair, 0.7)))
    layers.extend(_mouth(face, person, front + 0.7 * drop))
    return layers


def _eye(face: Face[np.ndarray], person: FaceIdentity, side: int, front: np.ndarray) -> list[Layer]:
    x = np.linspace(-1, 1, 13)
    half = 0.23 * person.eye_size
    opening = np.clip(0.13 * (1 + 0.85 * face.eye_open), 0.008, None)[:, None] * person.eye_size
    droop = 0.06 * np.clip(face.brow_slant, 0, None)[:, None] * (x * side + 1) / 2  # the outer corner hangs
    middle_x, middle_y = 0.4 * person.eye_distance * side, -0.14 + front[:, None]
    upper = middle_y - 1.15 * opening * (1 - x**2) + droop
    lower = middle_y + 0.85 * opening * (1 - x**2) + droop
    across = middle_x + half * x
    layers: list[Layer] = [(_outline(across, upper, lower), (244, 242, 240))]
    for radius, colour in ((0.125, person.iris), (0.062, (12, 10, 12))):
        disc = _ellipse(0, 0, radius, radius, 16)
        disc_x = middle_x + 0.07 * face.gaze_x[:, None] + disc[:, 0]
        disc_y = middle_y + 0.05 * face.gaze_y[:, None] + disc[:, 1]
        reach = np.clip(1 - ((disc_x - middle_x) / half) ** 2, 0, None)  # the lids cover the rest of the iris
        disc_y = np.clip(disc_y, middle_y - 1.15 * opening * reach, middle_y + 0.85 * opening * reach)
        layers.append((np.stack([disc_x, disc_y], -1), colour))
    layers.append((_outline(across, upper - 0.025, upper + 0.02), (40, 28, 28)))
    return layers


def _brow(face: Face[np.ndarray], person: FaceIdentity, side: int, front: np.ndarray) -> np.ndarray:
    x = np.linspace(0, 1, 7)  # from the inner end to the outer
    knit, slant = face.brow_knit[:, None], face.brow_slant[:, None]
    inner = 0.16 - 0.07 * np.clip(knit, 0, None)
    across = side * person.eye_distance * (inner + (0.66 - inner) * x)
    height = -0.47 - 0.06 * person.brow_rest - 0.19 * face.brow_raise + front
    line = height[:, None] - 0.06 * np.sin(np.pi * (0.2 + 0.8 * x))
    line = line + knit * (0.17 * (1 - x) ** 1.5 - 0.03 * x) - slant * (0.18 * (1 - x) - 0.10 * x)
    thickness = 0.05 * person.brow_thickness * (1 - 0.45 * x)
    return _outline(across, line - thickness, line + thickness)


def _mouth(face: Face[np.ndarray], person: FaceIdentity, lowered: np.ndarray) -> list[Layer]:
    x = np.linspace(-1, 1, 15)
    arch = 1 - x**2
    curve = face.mouth_curve[:, None] + 0.5 * person.mouth_rest
    gap = np.clip(0.36 * face.mouth_open, 0.0, 0.45)[:, None]
    half = 0.36 * (1 + 0.35 * face.mouth_width)[:, None]
    corner = 0.56 + lowered[:, None] - 0.12 * curve
    upper = corner + arch * (0.24 * curve - 0.35 * gap)
    lower = corner + arch * (0.24 * curve + 0.65 * gap)
    lip = 0.02 + 0.05 * arch
    teeth = np.minimum(upper + 0.4 * (lower - upper), upper + 0.1)
    hidden = np.where(gap > 0.05, 0.0, 99.0)  # out of sight while the lips are closed
    return [
        (_outline((half + 0.05) * x, upper - lip, lower + 1.2 * lip), person.lips),
        (_outline(half * x, upper - 0.008, lower + 0.008), (70, 22, 28)),
        (_outline(0.92 * half * x, upper + hidden, teeth + hidden), (238, 232, 224)),
    ]


def _outline(across: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The closed shape between two lines over the same x: [n, k] each (x also [k]) -> [n, 2 k, 2]."""
    across = np.broadcast_to(across, upper.shape)
    return np.concatenate([np.stack([across, upper], -1), np.stack([across, lower], -1)[:, ::-1]], axis=1)


def _ribbon(line: np.ndarray, half_width: float) -> np.ndarray:
    """A line [k, 2] as a shape of some width, [2 k, 2]."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], -1) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([line + half_width * across, (line - half_width * across)[::-1]])


def _lowered(points: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Move points [k, 2] down by [n, 1] or [n, k] -> [n, k, 2]."""
    down = np.broadcast_to(by, (len(by), len(points)))
    return points + np.stack([np.zeros_like(down), down], -1)


def _ellipse(
    x: float, y: float, a: float, b: float, points: int = 28, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    angle = np.linspace(start, stop, points, endpoint=stop - start < 6.28)
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], -1)


def _backdrop(person: FaceIdentity, camera: Camera) -> np.ndarray:
    """What does not move: the wall, shoulders and neck."""
    import cv2

    fade = np.linspace(1.1, 0.8, FRAME_SIZE)[:, None, None]
    canvas = np.clip(np.array(camera.background) * fade * np.ones((1, FRAME_SIZE, 1)), 0, 255).astype(np.uint8)
    shoulders = np.array([[-1.5, 2.6], [-1.2, 1.55], [-0.4, 1.3], [0.4, 1.3], [1.2, 1.55], [1.5, 2.6]])
    neck = np.array([[-0.36, 0.6], [0.36, 0.6], [0.4, 1.4], [-0.4, 1.4]])
    for shape, colour in ((shoulders, person.shirt), (neck, _shade(person.skin, 0.78))):
        pixels = shape * _UNIT * camera.scale + FRAME_SIZE * np.array([camera.x, camera.y])
        points = np.round(pixels * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(canvas, [points], colour, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def _light(camera: Camera) -> np.ndarray:
    """Brightness of each pixel in 128ths."""
    across = 1 + 0.3 * camera.side_light * np.linspace(-1, 1, FRAME_SIZE)
    gain = np.broadcast_to(128 * camera.brightness * across[None, :, None], (FRAME_SIZE, FRAME_SIZE, 3))
    return np.clip(np.round(gain), 0, 255).astype(np.uint8)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    return _colour(np.array(colour) * factor)
