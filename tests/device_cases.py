"""What ``test_devices`` runs on a GPU that is not there: every loss, attack and defence once, or more often.

A case is a function of a ``World``. Its name begins with the module and name of what it is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from kdsec import budgets, distill, layered, models, oracle, pgd
from kdsec.attacks import (
    adaptive,
    adaptive_mimicry,
    apgd,
    backdoor,
    constrained_search,
    crafting,
    data_free,
    data_free_fast,
    data_free_inversion,
    extraction,
    gradient_masking,
    inverse_reversal,
    mimicry,
    poisoning,
    postprocessing,
    recovery,
    similarity,
    skeptical,
    stored,
    triggers,
    tuning,
)
from kdsec.data import Augment, Batch, ImageSet, Splits
from kdsec.defenses import (
    adversarial_training,
    adversarial_unlearning,
    backdoor_detection,
    backdoor_removal,
    differentiators,
    nasty,
    output_wrappers,
    perturbations,
    prediction_poisoning,
    pruning,
    purification,
    purifiers,
    realised,
    registry,
    rejection,
    reversed_maximization,
    sparse_teacher,
    stingy,
    transformations,
    verifiers,
)
from kdsec.report import metrics
from kdsec.train import CrossEntropy, Recipe, evaluate, fit, outputs
from tests.small import build, trained

SHAPE = (1, 8, 8)
RECIPE = Recipe(steps=2, batch_size=8, lr=0.01, precision="float32")
EPS = 8 / 255


class World:
    """Networks and images on the device that a case runs on."""

    def __init__(self, digits: Splits, device: str) -> None:
        self.digits, self.device = digits, device
        self.data = digits.train.subset(slice(0, 40)).to(device)
        self.test = digits.test.subset(slice(0, 20)).to(device)
        self.batch = Batch(self.images, self.labels, torch.arange(8).to(device))

    @property
    def images(self) -> Tensor:
        return self.data.float_images(slice(0, 8))

    @property
    def labels(self) -> Tensor:
        return self.data.labels[:8]

    @cached_property
    def teacher(self) -> Any:
        return trained(self.digits).to(self.device)

    @cached_property
    def logits(self) -> Tensor:
        return distill.teacher_labels(self.teacher, self.data)

    @cached_property
    def log_p(self) -> Tensor:
        return self.logits.log_softmax(1)

    def new(self, name: str = "digits-small", classes: int = 10) -> Any:
        return build(self.digits, name, 1, classes).to(self.device)

    @cached_property
    def student(self) -> Any:
        """Transfer learning from the teacher, with two frozen layers."""
        return layered.transfer(self.teacher, 10, 2).to(self.device).eval()

    @cached_property
    def purifier(self) -> Any:
        return models.build_autoencoder("autoencoder-small", SHAPE, seed=0).to(self.device)

    @cached_property
    def mark(self) -> Any:
        return triggers.trigger("square 2", SHAPE)

    def learns(self, loss: Any, model: nn.Module | None = None, batch: Batch | None = None) -> Any:
        """Forward and backward pass of a loss; the gradients."""
        model = self.new().train() if model is None else model
        loss(model, batch or self.batch).backward()
        return [each.grad for each in model.parameters() if each.grad is not None]

    def context(self) -> registry.DefenseContext:
        strengths = registry.DefenseStrength(
            0.1, 4.0, 0.1, 2, 2, 6.0, 0.05, EPS, EPS / 2, 2, precision="float32"
        )

        def train(arm: str, loss: Any = None, images: ImageSet | None = None) -> nn.Module:
            model = self.new()
            fit(model, self.data if images is None else images, RECIPE, loss)
            return model

        def cached(label: str, make: Any, *args: Any, **options: Any) -> Any:
            return make(*args, **options)

        return registry.DefenseContext(self.teacher, train, self.data, strengths, cached)

    def shadow(self, images: ImageSet) -> tuple[nn.Module, nn.Module]:
        """An honest and a stingy teacher, as a thief rebuilds them."""
        context = self.context()

        def train(arm: str, images: ImageSet, loss: Any = None) -> nn.Module:
            return context.train(arm, loss, images)

        return registry.shadow(registry.stingy, train, context.strengths, context.cached)(images)

    def attacked(self, attack: Any) -> Any:
        """The student that an extraction attack trains, seen from the outside."""
        student = attack(self.new("digits-medium"), self.teacher, self.data, RECIPE)
        return student(self.images)

    def ensemble(self) -> Any:
        config = differentiators.DifferentiatorConfig(RECIPE, alpha=0.5)
        part = layered.select_classes(self.data, range(3))
        net = layered.transfer(self.teacher, 3, 1).to(self.device)
        return differentiators.build(net, part, differentiators.pairs(3), config), part


def asked(module: Callable[[World], nn.Module], given: str = "images", learns: bool = True) -> Any:
    """A case: a module, moved to the device, is asked and differentiated."""

    def case(w: World) -> Any:
        found = module(w).to(w.device)(getattr(w, given).detach().clone().requires_grad_(learns))
        if learns:
            found.square().mean().backward()
        return found

    return case


def restored(level: str, **options: Any) -> Callable[[World], Any]:
    """A case: a purifier learns from two teachers at a level."""

    def case(w: World) -> Any:
        teacher = models.build_autoencoder("autoencoder", SHAPE, seed=0).to(w.device)
        terms = purification.two_teacher_terms(teacher, teacher)
        how = perturbations.ClassifierPGD(w.teacher, EPS, 1)
        loss = purification.EnsembleDistillation(terms, how, level=level, **options)
        return w.learns(loss, w.purifier)

    return case


def restore(disturb: Callable[[World], Any]) -> Callable[[World], Any]:
    def case(w: World) -> Any:
        batch = w.batch
        if isinstance(disturb(w), perturbations.Precomputed):  # attacked images beside the clean ones
            batch = batch._replace(images=torch.cat([w.images, w.images], 1))
        return w.learns(purification.Restore(disturb(w), w.teacher, clean=1.0, labels=1.0), w.purifier, batch)

    return case


BUDGETS = {
    "Dssim": constrained_search.Dssim(0.03, steps=3, levels=2),
    "Linf": constrained_search.Linf(EPS, steps=3, restarts=2),
}
POSTS = {
    "keep_top": partial(postprocessing.keep_top, keep=2),
    "averaged": postprocessing.averaged,
    "mean_removed": postprocessing.mean_removed,
    "class_mean_removed": postprocessing.class_mean_removed,
    "linear_map": postprocessing.linear_map,
}
UNDONE = {
    "power": partial(inverse_reversal.power, exponent=-1.0),
    **{
        f"inverse, {each}": partial(inverse_reversal.inverse, reading=each)
        for each in inverse_reversal.INVERSES
    },
    "class_means_negated": inverse_reversal.class_means_negated,
    "sign_detected": inverse_reversal.sign_detected,
}
Case = Callable[[World], Any]
CASES: dict[str, Case] = {}

# Losses
CASES |= {
    "train.CrossEntropy": lambda w: w.learns(CrossEntropy(0.1)),
    "distill.KD": lambda w: w.learns(distill.KD(w.teacher)),
    "distill.KD, cached logits": lambda w: w.learns(distill.KD(w.logits)),
    "distill.HardLabels": lambda w: w.learns(distill.HardLabels(w.teacher, 0.1)),
    "distill.AttentionTransfer": lambda w: w.learns(distill.AttentionTransfer(w.teacher)),
    "attacks.skeptical.SkepticalLoss": lambda w: w.learns(
        skeptical.SkepticalLoss(w.teacher), skeptical.Branched(w.new("digits-medium"), w.data, 0).to(w.device)
    ),
    "defenses.adversarial_training.PGDTraining": lambda w: w.learns(adversarial_training.PGDTraining(EPS, 2)),
    "defenses.adversarial_training.TRADES": lambda w: w.learns(adversarial_training.TRADES(EPS, steps=2)),
    "defenses.adversarial_unlearning.AdversarialUnlearning": lambda w: w.learns(
        adversarial_unlearning.AdversarialUnlearning(steps=2, terms=2)
    ),
    "defenses.nasty.NastyLoss": lambda w: w.learns(nasty.NastyLoss(w.teacher)),
    "defenses.verifiers.NeuronDistance": lambda w: w.learns(
        verifiers.NeuronDistance(layered.flatten_layers(w.teacher), 2, 1.0),
        layered.flatten_layers(w.new("digits-medium")),
    ),
    "defenses.purification.EnsembleDistillation, image": restored("image", reconstruction=1.0),
    "defenses.purification.EnsembleDistillation, features": restored("features", reconstruction=1.0),
    "defenses.purification.Restore": restore(lambda w: perturbations.Noise(0.1)),
    "defenses.perturbations.ClassifierPGD": restore(lambda w: perturbations.ClassifierPGD(w.teacher, EPS, 2)),
    "defenses.perturbations.EndToEnd": restore(lambda w: perturbations.EndToEnd(w.teacher, EPS, 2)),
    "defenses.perturbations.Noise": restore(lambda w: perturbations.Noise(0.1)),
    "defenses.perturbations.Identity": restore(lambda w: perturbations.Identity()),
    "defenses.perturbations.Precomputed": restore(lambda w: perturbations.Precomputed()),
}

for _reading in sorted(reversed_maximization.READINGS):
    CASES[f"defenses.reversed_maximization.ReversedMaximizationLoss, {_reading}"] = (
        lambda w, reading=_reading: w.learns(
            reversed_maximization.ReversedMaximizationLoss(w.teacher, reading)
        )
    )
for _divergence in sparse_teacher.DIVERGENCES:
    for _source in sparse_teacher.SOURCES:
        CASES[f"defenses.sparse_teacher.SparseTeacherLoss, {_divergence}, {_source}"] = (
            lambda w, divergence=_divergence, source=_source: w.learns(
                sparse_teacher.SparseTeacherLoss(
                    divergence=divergence, source=source, paired=source == "random"
                ),
                batch=w.batch._replace(images=torch.cat([w.images, w.images], 1)),
            )
        )

# Modules around a network's input or output
CASES |= {
    "attacks.postprocessing.LogProbabilities": asked(lambda w: postprocessing.LogProbabilities(), "logits"),
    "attacks.postprocessing.KeepTop": asked(lambda w: postprocessing.KeepTop(2), "log_p"),
    "attacks.postprocessing.Debias": asked(lambda w: postprocessing.Debias(w.log_p[:10]), "log_p"),
    "attacks.postprocessing.Averaged": asked(lambda w: postprocessing.Averaged(w.teacher)),
    "attacks.inverse_reversal.Power": asked(lambda w: inverse_reversal.Power(-0.5, 4.0), "log_p"),
    "attacks.inverse_reversal.Inverse": asked(lambda w: inverse_reversal.Inverse("negate", 4.0), "log_p"),
    "attacks.inverse_reversal.Profiles": asked(
        lambda w: inverse_reversal.Profiles(w.log_p[:10].exp(), 4.0), "log_p", learns=False
    ),
    "attacks.recovery.Recovery": asked(lambda w: recovery.Recovery(w.log_p), "log_p"),
    "attacks.skeptical.Branched": lambda w: (
        skeptical.Branched(w.new("digits-medium"), w.data, 0).to(w.device).answers(w.images)
    ),
    "attacks.poisoning.Ensemble": asked(lambda w: poisoning.Ensemble([w.teacher, w.new()])),
    "attacks.adaptive.BPDA": asked(lambda w: adaptive.BPDA(transformations.BitDepth(3))),
    "attacks.adaptive.EOT": asked(
        lambda w: adaptive.EOT(nn.Sequential(transformations.RandomNoise(0.1), w.teacher), 3)
    ),
    "defenses.backdoor_removal.Mask": asked(lambda w: backdoor_removal.Mask(torch.ones(1))),
    "defenses.differentiators.Restricted": asked(lambda w: differentiators.Restricted(w.teacher, (0, 2))),
    "defenses.output_wrappers.Reversed": asked(lambda w: output_wrappers.Reversed(), "logits", learns=False),
    "defenses.output_wrappers.Rounded": asked(lambda w: output_wrappers.Rounded(), "logits", learns=False),
    "defenses.output_wrappers.TopK": asked(lambda w: output_wrappers.TopK(2), "logits", learns=False),
    "defenses.prediction_poisoning.PredictionPoisoning": asked(
        lambda w: prediction_poisoning.PredictionPoisoning(0.5), "logits", learns=False
    ),
    "defenses.stingy.Stingy": asked(lambda w: stingy.Stingy(w.teacher, 2)),
    "defenses.transformations.BitDepth": asked(lambda w: transformations.BitDepth(3), learns=False),
    "defenses.transformations.Median": asked(lambda w: transformations.Median(3)),
    "defenses.transformations.Blur": asked(lambda w: transformations.Blur()),
    "defenses.transformations.JPEG": asked(lambda w: transformations.JPEG(), learns=False),
    "defenses.transformations.RandomNoise": asked(lambda w: transformations.RandomNoise(0.1)),
    "defenses.verifiers.Blank": asked(lambda w: verifiers.Blank(0.2)),
    "defenses.purifiers.protect": asked(lambda w: purifiers.protect(w.purifier, w.teacher, SHAPE)),
    "defenses.purifiers.encoder": asked(lambda w: purifiers.encoder(w.purifier)),
    "oracle.Oracle": lambda w: (
        oracle.Oracle(w.teacher)(w.images),
        oracle.as_oracle(w.teacher).query(w.data),
    ),
    "oracle.Memory": lambda w: recalled(w),
    "layered.LayeredClassifier": lambda w: layered.flatten_layers(w.teacher).output(w.images, 2),
}

# Theft
CASES |= {
    "attacks.extraction.labelled": lambda w: w.attacked(extraction.labelled()),
    "attacks.extraction.powers": lambda w: w.attacked(extraction.powers([-1.0])["power -1"]),
    "attacks.extraction.run_attacks": lambda w: extraction.run_attacks(
        {"soft labels": extraction.EXTRACTION_ATTACKS["soft labels"]},
        w.new,
        w.teacher,
        w.data,
        w.test,
        RECIPE,
        search=tuning.Search((1.0, 4.0), (1.0, 0.5)),
    )[0].student(w.images),
    "attacks.recovery.fit_recovery": lambda w: recovery.fit_recovery(w.logits, w.logits, 4.0, steps=2)(
        w.log_p
    ),
    "attacks.recovery.pool": lambda w: [
        w.attacked(each) for each in recovery.pool(w.shadow, [extraction.RECOVERY]).values()
    ],
    "attacks.stored.stored_attacks": lambda w: [
        w.attacked(each)
        for each in stored.stored_attacks(0.1, {"debias": postprocessing.KeepTop(2)}).values()
    ],
    "attacks.inverse_reversal.guess_from_pixels": lambda w: inverse_reversal.guess_from_pixels(
        w.data, w.logits.argmax(1), 10
    ),
    "attacks.data_free.Generator": lambda w: data_free.Generator(SHAPE, 8, 8).to(w.device)(
        torch.rand(4, 8).to(w.device)
    ),
    "attacks.data_free_inversion.Inversion": lambda w: data_free_inversion.Inversion(
        batches=1, batch_size=8, steps=2
    )(w.teacher, SHAPE),
}
for _name, _post in {**POSTS, **{f"undone {name}": post for name, post in UNDONE.items()}}.items():
    _where = "inverse_reversal" if _name.startswith("undone ") else "postprocessing"
    CASES[f"attacks.{_where}.{_name.removeprefix('undone ')}"] = lambda w, post=_post: post(
        w.teacher, w.data
    )(w.images)
for _name, _attack in extraction.EXTRACTION_ATTACKS.items():
    CASES[f"attacks.extraction.EXTRACTION_ATTACKS, {_name}"] = lambda w, attack=_attack: w.attacked(attack)
for _target in data_free.TARGETS:
    _small = {"batch_size": 8, "student_steps": 2, "generator_steps": 2, "target": _target}
    for _name, _attack in {
        "data_free.DFAD": data_free.DFAD(rounds=1, latent=8, width=8, **_small),
        "data_free_fast.FastDFKD": data_free_fast.FastDFKD(rounds=2, warmup=1, latent=8, width=8, **_small),
    }.items():
        CASES[f"attacks.{_name}, {_target}"] = lambda w, attack=_attack: attack(w.new(), w.teacher, SHAPE)

# Evasion
CASES |= {
    "pgd.fgsm": lambda w: pgd.fgsm(w.teacher, w.images, w.labels, eps=EPS),
    "attacks.adaptive.adaptive_pgd": lambda w: adaptive.adaptive_pgd(
        nn.Sequential(transformations.RandomNoise(0.1), w.teacher),
        w.images,
        w.labels,
        eps=EPS,
        steps=4,
        starts=[w.images],
    ),
    "attacks.adaptive.worst_case": lambda w: adaptive.worst_case(
        w.teacher, [w.images, 1 - w.images], w.labels
    ),
    "attacks.adaptive.is_random": lambda w: adaptive.is_random(w.teacher, w.images),
    "attacks.apgd.auto_ascent": lambda w: apgd.auto_ascent(
        pgd.label_objective(w.teacher, w.labels), w.images, pgd.PerturbationSet(w.images, EPS), 8
    ),
    "attacks.gradient_masking.masking_checks": lambda w: gradient_masking.masking_checks(
        w.teacher, w.images, w.labels, eps=EPS, steps=3, others={"transfer": w.images}, draws=2
    ),
    "attacks.gradient_masking.mean_correct": lambda w: gradient_masking.mean_correct(
        w.teacher, w.images, w.labels, 2
    ),
    "attacks.similarity.change": lambda w: similarity.change(w.images, 1 - w.images, levels=2),
    "attacks.similarity.ms_ssim": lambda w: similarity.ms_ssim(w.images, 1 - w.images, levels=2),
}
for _norm in budgets.NORMS:
    CASES[f"pgd.pgd, {_norm}"] = lambda w, norm=_norm: pgd.pgd(
        w.teacher, w.images, w.labels, eps=EPS, steps=3, norm=norm, restarts=2, stop_early=norm == "l2"
    )
    for _loss in pgd.LOSSES:
        CASES[f"attacks.adaptive.adaptive_pgd, {_norm}, {_loss}"] = lambda w, norm=_norm, loss=_loss: (
            adaptive.adaptive_pgd(w.teacher, w.images, w.labels, eps=EPS, norm=norm, losses=[loss], steps=4)
        )

# Poisons
CASES |= {
    "attacks.poisoning.poison": lambda w: (
        poisoning.poison(
            w.data,
            w.teacher,
            w.mark,
            0,
            0.1,
            crafting.Crafting(eps=1.0, step_size=0.2, confidence=0.0),
            judge=w.teacher,
            needed=0,
        ).data.images
    ),
    "attacks.poisoning.random_signs": lambda w: poisoning.random_signs(w.images, w.mark, EPS),
    "attacks.poisoning.distillation": lambda w: [
        w.learns(poisoning.distillation(w.teacher, w.data, answers, 4.0)) for answers in poisoning.ANSWERS
    ],
    "attacks.backdoor.measure": lambda w: backdoor.measure(w.teacher, w.test, w.mark, 0),
    "attacks.backdoor.attack_success": lambda w: backdoor.attack_success(w.teacher, w.test, w.mark, 0),
    "attacks.backdoor.response": lambda w: backdoor.response(w.teacher, w.test, w.mark),
    "attacks.backdoor.label_survival": lambda w: backdoor.label_survival(
        w.teacher, w.test, 0, Augment(crop=1), 2
    ),
    "attacks.backdoor.visibility": lambda w: backdoor.visibility(w.data.images[:8], w.data.images[8:16]),
    "attacks.crafting.craft, views": lambda w: (
        crafting.craft(
            w.teacher,
            w.data.images,
            w.mark,
            0,
            crafting.Crafting(steps=2, views=2, augment=Augment(crop=1, flip=True), spread=0.5),
        ).images
    ),
    "attacks.crafting.craft, no trigger": lambda w: (
        crafting.craft(w.teacher, w.data.images, None, 0, crafting.Crafting(steps=2, stop_early=True)).images
    ),
}
for _method in crafting.METHODS:
    for _mode in crafting.MODES:
        CASES[f"attacks.crafting.craft, {_method}, {_mode}"] = lambda w, method=_method, mode=_mode: (
            crafting.craft(
                w.teacher, w.data.images, w.mark, 0, crafting.Crafting(method, mode, steps=2, rounds=2)
            ).images
        )
for _name in (f"{each} 2" for each in triggers.TRIGGERS):
    CASES[f"attacks.triggers.trigger, {_name}"] = lambda w, name=_name: triggers.trigger(name, SHAPE).stamp(
        w.images
    )

# Mimicry
for _name, _budget in BUDGETS.items():
    CASES[f"attacks.constrained_search.{_name}"] = lambda w, budget=_budget: mimicry.mimic(
        w.teacher, 2, w.data.images[:6], w.data.images[6:12], budget
    )
    CASES[f"attacks.mimicry.mimic_any, {_name}"] = lambda w, budget=_budget: mimicry.mimic_any(
        w.teacher, 2, w.data.images[:3], w.data.images[3:9].unflatten(0, (3, 2)), budget
    )
CASES |= {
    "attacks.mimicry.mimic_any, a budget for each": lambda w: mimicry.mimic_any(
        w.teacher,
        2,
        w.data.images[:3],
        w.data.images[3:9].unflatten(0, (3, 2)),
        dataclasses.replace(BUDGETS["Linf"], eps=torch.full((3,), EPS).to(w.device), goal=0.5, patience=2),
    ),
    "attacks.mimicry.choose_pairs": lambda w: (
        mimicry.choose_pairs(w.teacher, w.data, 4, candidates=2).sources
    ),
    "attacks.mimicry.best_layer": lambda w: mimicry.best_layer(
        lambda images: w.student(images).argmax(1),
        w.teacher,
        w.data,
        mimicry.choose_pairs(w.teacher, w.data, 4),
        BUDGETS["Linf"],
        [3, 2],
    ),
    "attacks.adaptive_mimicry.adaptive_mimicry": lambda w: adaptive_mimicry.adaptive_mimicry(
        w.student,
        w.teacher,
        2,
        {label: [(w.new(), label)] for label in range(5)},
        w.data.images[:6],
        w.data.images[6:12],
        w.data.labels[6:12],
        BUDGETS["Linf"],
    ),
    "attacks.adaptive_mimicry.worst_case_over_attempts": lambda w: adaptive_mimicry.worst_case_over_attempts(
        verifiers.Confidence(w.teacher).predict_with_score, [w.images, 1 - w.images], w.labels
    ),
}

# Protected teachers, detectors, rejectors
for _name, _defense in registry.DEFENSES.items():
    CASES[f"defenses.registry.DEFENSES, {_name}"] = lambda w, defense=_defense: defense(w.context())(w.images)
for _kind in sparse_teacher.PERTURBATIONS:
    CASES[f"defenses.sparse_teacher.perturb, {_kind}"] = lambda w, kind=_kind: (
        sparse_teacher.pair(w.data, sparse_teacher.perturb(w.teacher, w.data, kind, steps=2)).images
    )
for _objective in realised.OBJECTIVES:
    CASES[f"defenses.realised.check_realised, {_objective}"] = lambda w, objective=_objective: (
        realised.check_realised(objective, w.logits.roll(1, 1), w.logits, w.data.labels, control=w.logits)
    )
for _ranking in pruning.RANKINGS:
    CASES[f"defenses.pruning.prune, {_ranking}"] = lambda w, ranking=_ranking: pruning.prune(
        w.student, w.data.images, 0.5, ranking
    )(w.images)
CASES |= {
    "defenses.pruning.cost": lambda w: pruning.cost(w.student, SHAPE),
    "defenses.differentiators.DifferentiatorEnsemble": lambda w: [
        dataclasses.replace(w.ensemble()[0], members=members).predict_with_score(w.ensemble()[1].images)
        for members in (None, 1)
    ],
    "defenses.verifiers.Confidence": lambda w: verifiers.Confidence(w.teacher).predict_with_score(
        w.data.images
    ),
    "defenses.verifiers.Agreement": lambda w: verifiers.Agreement(w.teacher, (w.new(),)).predict_with_score(
        w.data.images
    ),
    "defenses.verifiers.InputDropout": lambda w: verifiers.InputDropout(w.teacher).predict_with_score(
        w.data.images
    ),
    "defenses.verifiers.choose_dropout": lambda w: verifiers.choose_dropout(w.teacher, w.data, [0.1, 0.2]),
    "defenses.verifiers.Squeezing": lambda w: verifiers.Squeezing(w.teacher).predict_with_score(
        w.data.images
    ),
    "defenses.verifiers.push_away": lambda w: verifiers.push_away(
        w.student, w.teacher, w.data, RECIPE, layer=2, distance=1.0, stages=1
    )(w.images),
    "defenses.rejection.auc": lambda w: rejection.auc(w.logits[:, 0], w.logits[:, 1]),
    "defenses.rejection.measure": lambda w: rejection.measure(
        verifiers.Confidence(w.teacher),
        0.05,
        w.data,
        w.test,
        {
            "targeted": (w.test.images, w.test.labels, w.test.labels.roll(1)),
            "any": (w.test.images, w.test.labels, None),
        },
    ),
    "defenses.purifiers.purified": lambda w: purifiers.purified(w.purifier, {"clean": w.images}),
    "defenses.backdoor_detection.roc": lambda w: backdoor_detection.roc(w.logits[:, 0], w.data.labels == 0),
    "defenses.backdoor_detection.label_disagreement": lambda w: backdoor_detection.label_disagreement(
        w.teacher, w.data
    ),
    "defenses.backdoor_detection.label_instability": lambda w: backdoor_detection.label_instability(
        w.teacher, w.data, Augment(crop=1), views=2
    ),
    "defenses.backdoor_detection.spectral_signatures": lambda w: backdoor_detection.spectral_signatures(
        *features_of(w)
    ),
    "defenses.backdoor_detection.activation_clustering": lambda w: backdoor_detection.activation_clustering(
        *features_of(w), components=2
    ),
    "defenses.backdoor_detection.strip": lambda w: backdoor_detection.strip(
        w.teacher, w.images, w.images, blends=3
    ),
    "defenses.backdoor_detection.neural_cleanse": lambda w: backdoor_detection.neural_cleanse(
        w.teacher, w.images, 2, steps=3, batch_size=4
    )[0],
    "defenses.backdoor_removal.prune_dormant": lambda w: backdoor_removal.prune_dormant(w.teacher, w.data)[0](
        w.images
    ),
    "defenses.backdoor_removal.attention_distillation": lambda w: w.learns(
        backdoor_removal.attention_distillation(w.teacher)
    ),
}

# Layers, measures
CASES |= {
    "models.wrap": lambda w: models.wrap(w.teacher, 10, mean=[0.4], std=[0.2]).to(w.device)(w.images),
    "models.wrap, a distant API": lambda w: models.wrap(
        lambda images: w.teacher(images).detach().cpu().softmax(1), 10, probabilities=True
    )(w.images),
    "layered.transfer": lambda w: w.student(w.images),
    "layered.fit_above": lambda w: layered.fit_above(
        w.student, w.data, RECIPE, lambda net, data, recipe: (fit(net, data, recipe), net)[1]
    )(w.images),
    "layered.student_parts": lambda w: [
        each.images for each in layered.student_parts([w.data, w.test, w.test], range(3), 4, 4, 5, 0)
    ],
    "layered.nearest_mean": lambda w: layered.nearest_mean(w.teacher, w.data, 2)(w.images),
    "layered.feature_distance": lambda w: layered.feature_distance(w.logits, w.logits.roll(1, 0)),
    "report.metrics.probability_scores": lambda w: metrics.probability_scores(w.logits, w.data.labels),
    "report.metrics.customer_cost": lambda w: metrics.customer_cost(
        w.logits, w.logits.roll(1, 1), w.data.labels
    ),
    "report.metrics.mean_entropy": lambda w: metrics.mean_entropy(w.logits),
    "train.outputs": lambda w: outputs(w.purifier, w.test),
    "train.evaluate": lambda w: evaluate(w.teacher, w.test),
}
for _optimizer in ("sgd", "adam", "muon"):
    CASES[f"train.fit, {_optimizer}"] = lambda w, optimizer=_optimizer: trained_by(w, optimizer)


def recalled(w: World) -> Any:
    """A training whose teacher's answers are kept, twice."""
    memory = oracle.Memory()
    for _ in range(2):
        with oracle.recalling(memory):
            fit(w.new(), w.data, RECIPE, distill.KD(w.teacher))
    assert memory.recalled == 2
    return None


def features_of(w: World) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = backdoor_detection.penultimate(w.teacher, w.data)
    return found, w.data.labels, found + 0.01, w.data.labels


def trained_by(w: World, optimizer: str) -> Any:
    augment = Augment(crop=1, flip=True, cutout=2, alternate=optimizer == "muon", reflect=optimizer == "muon")
    other = 0.01 if optimizer == "muon" else None
    model = w.new("digits-medium")
    fit(
        model,
        w.data,
        dataclasses.replace(RECIPE, optimizer=optimizer, other_lr=other, augment=augment, grad_clip=1.0),
    )
    return model(w.images)
