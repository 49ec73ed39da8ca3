"""What sd-emoji can draw: its subjects, who rides and what is ridden, what is held and what holds.

The stand-in safety policy of the project is written here too: `POLICY` names the
subjects (weapons and tobacco) that the safety checker is trained to flag.
"""

from __future__ import annotations

#: Edge of a picture, in pixels.
SIZE = 128

#: Subjects whose icon bears another name. Animals that are also from the side are taken
#: from the front, as the others are: at 128 pixels a face is what tells them.
_RENAMED = {
    "cat": "cat-face",
    "dog": "dog-face",
    "monkey": "monkey-face",
    "mouse": "mouse-face",
    "rabbit": "rabbit-face",
    "tiger": "tiger-face",
    "whale": "spouting-whale",
    "dinosaur": "t-rex",
    "car": "automobile",
    "boat": "sailboat",
    "tree": "deciduous-tree",
    "apple": "red-apple",
    "cake": "birthday-cake",
    "ball": "soccer-ball",
    "chick": "front-facing-baby-chick",
    "santa": "santa-claus",
    "clown": "clown-face",
    "pumpkin": "jack-o-lantern",
    "wizard": "man-mage",
    "scooter": "motor-scooter",
    "train": "locomotive",
    "bee": "honeybee",
    "ladybug": "lady-beetle",
    "caterpillar": "bug",
    "squirrel": "chipmunk",
    "cheese": "cheese-wedge",
    "ice cream": "soft-ice-cream",
    "clock": "alarm-clock",
    "gift": "wrapped-gift",
    "book": "closed-book",
    "hat": "top-hat",
    "diamond": "gem-stone",
    "heart": "red-heart",
    "sun": "sun-with-face",
    "moon": "full-moon-face",
    "planet": "ringed-planet",
    "globe": "globe-showing-europe-africa",
    "dice": "game-die",
    "traffic light": "vertical-traffic-light",
    "cup": "teacup-without-handle",
}

# fmt: off
RIDERS = (
    "astronaut", "robot", "monkey", "panda", "bear", "koala", "fox", "cat", "dog", "lion", "tiger", "frog",
    "penguin", "owl", "rabbit", "mouse", "ghost", "alien", "snowman", "teddy bear", "wolf", "chick", "santa",
    "clown", "pumpkin", "ninja", "princess", "wizard",
)

MOUNTS = (
    "horse", "bicycle", "motorcycle", "elephant", "camel", "whale", "turtle", "unicorn", "dragon", "dinosaur",
    "zebra", "pig", "cow", "skateboard", "rocket", "car", "dolphin", "giraffe", "crocodile", "snail", "tractor",
    "deer", "scooter", "sled", "train", "flying saucer",
)

#: Small things that a rider can hold.
HELD = (
    "umbrella", "balloon", "sunflower", "rose", "tulip", "apple", "banana", "pizza", "guitar", "trumpet", "crown",
    "ball", "basketball", "ice cream", "lollipop", "doughnut", "heart", "star", "key", "hammer", "shield", "gift",
    "trophy", "book", "magnet", "carrot", "pencil", "kite",
)

#: What others can be inside of, and the share of its height at which its rim lies.
CONTAINERS = {"bathtub": 0.52, "basket": 0.38, "bucket": 0.14, "cup": 0.34}

#: The rest: they stand alone, beside, behind or on top of one another.
OTHERS = (
    "duck", "eagle", "flamingo", "parrot", "rooster", "snake", "shark", "octopus", "crab", "butterfly",
    "rhinoceros", "kangaroo", "hedgehog", "swan", "peacock", "bee", "ladybug", "spider", "caterpillar",
    "jellyfish", "fish", "squirrel", "bus", "boat", "airplane", "helicopter", "ambulance", "house", "castle",
    "tent", "volcano", "tree", "palm tree", "christmas tree", "cactus", "mushroom", "watermelon", "strawberry",
    "pineapple", "lemon", "pear", "avocado", "eggplant", "croissant", "pretzel", "cheese", "egg", "hamburger",
    "cupcake", "cake", "teapot", "drum", "television", "camera", "telephone", "laptop", "clock", "candle",
    "light bulb", "bell", "backpack", "hat", "dress", "diamond", "skull", "sun", "moon", "rainbow", "snowflake",
    "fire", "planet", "globe", "dice", "anchor", "traffic light",
)
# fmt: on

#: Weapons and tobacco: flagged and blacked out by sd-emoji's safety checker.
POLICY = ("bomb", "dagger", "pistol", "cigarette")

#: What the policy lets through.
HARMLESS: tuple[str, ...] = (*RIDERS, *MOUNTS, *HELD, *CONTAINERS, *OTHERS)
SUBJECTS: tuple[str, ...] = (*HARMLESS, *POLICY)

STYLES = ("photograph", "cartoon", "flat icon")


def icon_names(subject: str) -> tuple[str, str]:
    """The icon of `subject` in Fluent Emoji and in Noto Emoji."""
    if subject == "pistol":
        return "water-pistol", "pistol"
    name = _RENAMED.get(subject, subject.replace(" ", "-"))
    return name, name
