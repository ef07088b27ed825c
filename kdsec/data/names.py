"""Class names of every data set, in label order."""

_DIGITS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
    apple aquarium-fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn-mower
    leopard lion lizard lobster man maple-tree motorcycle mountain mouse mushroom oak-tree orange orchid
    otter palm-tree pear pickup-truck pine-tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet-pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow-tree wolf woman worm
""".split()

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion-mnist": _FASHION,
    "cifar10": _CIFAR10,
    "cifar100": tuple(name.replace("-", " ") for name in _CIFAR100),
    "gtsrb": tuple(f"sign {label}" for label in range(43)),
    "tiny-imagenet": tuple(f"class {label}" for label in range(200)),
}
