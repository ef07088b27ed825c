"""Class names of every data set, in label order, and the super-classes of CIFAR-10 and CIFAR-100."""

# Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images": the twenty super-classes.
_CIFAR100_GROUPS = {
    "aquatic mammals": "beaver, dolphin, otter, seal, whale",
    "fish": "aquarium fish, flatfish, ray, shark, trout",
    "flowers": "orchid, poppy, rose, sunflower, tulip",
    "food containers": "bottle, bowl, can, cup, plate",
    "fruit and vegetables": "apple, mushroom, orange, pear, sweet pepper",
    "household electrical devices": "clock, keyboard, lamp, telephone, television",
    "household furniture": "bed, chair, couch, table, wardrobe",
    "insects": "bee, beetle, butterfly, caterpillar, cockroach",
    "large carnivores": "bear, leopard, lion, tiger, wolf",
    "large man-made outdoor things": "bridge, castle, house, road, skyscraper",
    "large natural outdoor scenes": "cloud, forest, mountain, plain, sea",
    "large omnivores and herbivores": "camel, cattle, chimpanzee, elephant, kangaroo",
    "medium-sized mammals": "fox, porcupine, possum, raccoon, skunk",
    "non-insect invertebrates": "crab, lobster, snail, spider, worm",
    "people": "baby, boy, girl, man, woman",
    "reptiles": "crocodile, dinosaur, lizard, snake, turtle",
    "small mammals": "hamster, mouse, rabbit, shrew, squirrel",
    "trees": "maple tree, oak tree, palm tree, pine tree, willow tree",
    "vehicles 1": "bicycle, bus, motorcycle, pickup truck, train",
    "vehicles 2": "lawn mower, rocket, streetcar, tank, tractor",
}
_CIFAR10_GROUPS = {
    "vehicles": "airplane, automobile, ship, truck",
    "animals": "bird, cat, deer, dog, frog, horse",
}
# Super-classes, for the data sets that have any.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    dataset: {group: tuple(members.split(", ")) for group, members in groups.items()}
    for dataset, groups in (("cifar10", _CIFAR10_GROUPS), ("cifar100", _CIFAR100_GROUPS))
}

# As torchvision names them, in its order.
_FLOWERS102 = """
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon
orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle,
yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire
lily, pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers,
stemless gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster,
alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton
daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy,
common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura,
geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan,
silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania,
azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium,
frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna
lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia,
bromelia, blanket flower, trumpet creeper, blackberry lily
"""

_DIGITS = tuple("0123456789")
_FASHION = "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
_SIGNS = tuple(f"sign {label}" for label in range(43))


def _sorted_members(dataset: str) -> tuple[str, ...]:
    """CIFAR's labels are in alphabetical order."""
    return tuple(sorted(name for members in GROUPS[dataset].values() for name in members))


CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion-mnist": tuple(_FASHION.split(", ")),
    "cifar10": _sorted_members("cifar10"),
    "cifar100": _sorted_members("cifar100"),
    "gtsrb": _SIGNS,
    "gtsrb-224": _SIGNS,
    "flowers102": tuple(" ".join(_FLOWERS102.split()).split(", ")),
    "tiny-imagenet": tuple(f"class {label}" for label in range(200)),
}
