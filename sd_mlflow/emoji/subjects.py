"""What sd-emoji can draw: its subjects, who rides, what is ridden, places and colours.

The stand-in safety policy of the project is written here too: `POLICY` names the
subjects (weapons and tobacco) that the safety checker is trained to flag.
"""

from __future__ import annotations

#: Edge of a picture, in pixels.
SIZE = 128

#: Subjects whose icon bears another name: word -> (name in Fluent, name in Noto). Animals that are also
#: drawn from the side are taken from the front, as the others are: at 128 pixels a face is what tells them.
_RENAMED = {
    "cat": ("cat-face", "cat-face"),
    "dog": ("dog-face", "dog-face"),
    "monkey": ("monkey-face", "monkey-face"),
    "mouse": ("mouse-face", "mouse-face"),
    "rabbit": ("rabbit-face", "rabbit-face"),
    "tiger": ("tiger-face", "tiger-face"),
    "whale": ("spouting-whale", "spouting-whale"),
    "dinosaur": ("t-rex", "t-rex"),
    "car": ("automobile", "automobile"),
    "boat": ("sailboat", "sailboat"),
    "tree": ("deciduous-tree", "deciduous-tree"),
    "apple": ("red-apple", "red-apple"),
    "cake": ("birthday-cake", "birthday-cake"),
    "ball": ("soccer-ball", "soccer-ball"),
    "teddy bear": ("teddy-bear", "teddy-bear"),
    "pistol": ("water-pistol", "pistol"),
}

# fmt: off
RIDERS = (
    "astronaut", "robot", "monkey", "panda", "bear", "koala", "fox", "cat", "dog", "lion", "tiger", "frog",
    "penguin", "owl", "rabbit", "mouse", "ghost", "alien", "snowman", "teddy bear",
)

MOUNTS = (
    "horse", "bicycle", "motorcycle", "elephant", "camel", "whale", "turtle", "unicorn", "dragon", "dinosaur",
    "zebra", "pig", "cow", "skateboard", "rocket", "car", "dolphin", "giraffe", "crocodile", "snail", "tractor",
)

OTHERS = (
    "duck", "eagle", "flamingo", "parrot", "rooster", "snake", "shark", "octopus", "crab", "butterfly",
    "rhinoceros", "kangaroo", "bus", "boat", "airplane", "helicopter", "house", "castle", "tree", "cactus",
    "mushroom", "sunflower", "rose", "apple", "banana", "pizza", "hamburger", "cake", "guitar", "umbrella",
    "balloon", "crown", "skull", "ball",
)
# fmt: on

#: The pairs of the catalog's sample request, drawn more often at the end of training.
SAMPLE_PAIRS = (("astronaut", "horse"), ("cat", "horse"))

#: Weapons and tobacco: flagged and blacked out by sd-emoji's safety checker.
POLICY = ("bomb", "dagger", "pistol", "cigarette")

SUBJECTS: tuple[str, ...] = (*RIDERS, *MOUNTS, *OTHERS, *POLICY)

PLACES = (
    "on mars",
    "at night",
    "in the snow",
    "in the desert",
    "on the grass",
    "in the sea",
    "at sunset",
)

COLOURS = {
    "white": (255, 255, 255),
    "red": (224, 80, 72),
    "blue": (84, 140, 226),
    "green": (96, 184, 104),
    "yellow": (248, 216, 96),
    "pink": (246, 164, 190),
    "purple": (160, 120, 210),
    "grey": (168, 172, 178),
}

#: Style -> the ways a caption says so. The first is the canonical one.
STYLES = {
    "photograph": ("a photograph of", "a photo of"),
    "cartoon": ("a cartoon of", "a drawing of"),
    "flat icon": ("a flat icon of",),
}


def icon_names(subject: str) -> tuple[str, str]:
    """The icon of `subject` in Fluent Emoji and in Noto Emoji."""
    return _RENAMED.get(subject, (subject, subject))


def with_article(subject: str) -> str:
    """`subject` with "a" or "an" before it."""
    return f"{'an' if subject[0] in 'aeiou' and subject != 'unicorn' else 'a'} {subject}"
