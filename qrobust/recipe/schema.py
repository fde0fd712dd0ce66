"""The tables of a recipe: keys, types, ranges, defaults, and what must go together."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .parts import (
    Analysis,
    Attacking,
    Average,
    Awp,
    Benchmark,
    Data,
    Evaluation,
    Export,
    Extra,
    Mix,
    Model,
    Ptq,
    Sar,
    ThreatModel,
    TrainingAttack,
    Validation,
)
from .values import (
    Bits,
    ClassWeights,
    Count,
    Fat,
    Float,
    Int,
    Name,
    Positive,
    Table,
    Weight,
    Width,
)


class Schedule(Table):
    """Epochs, optimiser and what is added to it."""

    LATER: ClassVar = (
        "optimizer", "warmup", "log_frequency_ratio", "class_weights", "classifier", "shortcuts", "activation_range",
        "unsupported", "start_from", "calibrator", "ptq", "nesterov", "decay", "pct_start", "teacher", "extra",
    )  # fmt: skip
    ADAMW: ClassVar = {"lr": 1e-3, "weight_decay": 0.05}  # what stands for the defaults, which are SGD's

    epochs: Annotated[Int, Field(ge=0)]
    """Passes over the training images; 0: the network is taken as it is."""
    batch_size: Count = 128
    """Images of a step, of all processes together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`"sgd"` with momentum, or `"adamw"`, as transformers are trained, with betas of 0.9 and 0.999."""
    lr: Positive = 0.1
    """Learning rate at its highest; left out, with `adamw`: 0.001."""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; AdamW does not read it."""
    nesterov: bool = False
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: Weight = 5e-4
    """L2 penalty of the weights. AdamW shrinks weights by lr times this in a step (left out: 0.05), but none of norms,
    biases, embeddings, class tokens and layer scales."""
    decay: Literal["all", "matrices"] = "all"
    """What SGD's `weight_decay` is for: `"all"` weights, or `"matrices"` alone, as AdamW's always is."""
    shape: Literal["step", "cosine", "cyclic", "one-cycle"] = "step"
    """`"step"`: lr drops at milestones; `"cosine"`: down to 0; `"cyclic"`: up from 0 for two fifths, down to 0;
    `"one-cycle"`: as torch's OneCycleLR, up from lr/25 and down to lr/250000 along cosines; momentum stays."""
    pct_start: Annotated[Float, Field(gt=0, lt=1)] = 0.025
    """Share of all steps in which the rate of `"one-cycle"` rises."""
    warmup: Weight = 0.0
    """Epochs, or a fraction of one, in which lr rises from 0 in a straight line; `"cosine"` and `"cyclic"` fall from
    there on."""
    milestones: tuple[Int, ...] = ()
    """Epochs at which lr drops, counted from 0, rising."""
    factors: tuple[Float, ...] | None = None
    """What lr is multiplied by at each milestone; left out: 0.1."""
    gradient_clip: Positive | None = None
    """Largest norm of all gradients together; left out: no clipping."""
    kurtosis: Weight = 0.0
    """Weight of KURE, which makes weights easy to quantise."""
    lipschitz: Weight = 0.0
    """Weight of Defensive Quantization's regularisation."""
    freeze_statistics: Annotated[Int, Field(ge=0)] | None = None
    """Epoch, counted from 0, from which batch-norm's statistics stand still; left out: never."""
    estimate_statistics: bool = False
    """Whether batch-norm's statistics are taken once more over the training images at the end."""
    sar: Sar | None = None
    awp: Awp | None = None
    average: Average | None = None
    teacher: Model | None = None

    @model_serializer(mode="wrap")
    def _without_later(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later only where they are used, so that keys of runs without them stay what they were."""
        fields = type(self).model_fields
        return {k: value for k, value in plain(self).items() if k not in self.LATER or value != fields[k].default}

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, table: Any) -> Any:
        """Rate and decay of the optimiser that is asked for, where the table names none."""
        adamw = isinstance(table, dict) and table.get("optimizer") == "adamw"
        return {**cls.ADAMW, **table} if adamw else table

    @model_validator(mode="after")
    def _taught(self) -> Schedule:
        teacher = self.teacher
        if teacher is not None and not teacher.weights and not _is_users(teacher.name):
            raise ValueError(
                f"expected weights of the teacher {teacher.name!r}, or a factory that loads its own, got none; "
                "set teacher.weights"
            )
        return self

    @model_validator(mode="after")
    def _trains(self) -> Schedule:
        if not self.epochs and self.average is not None:
            raise ValueError("expected no table average with epochs = 0, got one; remove it")
        fat = getattr(self, "fat", "none")
        if not self.epochs and fat != "none":
            raise ValueError(
                f"expected fat = 'none' with epochs = 0, got {fat!r}, whose weights need training; set it to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _rises(self) -> Schedule:
        if self.epochs and self.warmup >= self.epochs:
            raise ValueError(f"expected warmup below {self.epochs}, all epochs, got {self.warmup:g}; lower it")
        if self.warmup and self.shape == "one-cycle":
            raise ValueError(
                f"expected no warmup with shape 'one-cycle', which rises by itself, got {self.warmup:g}; set pct_start"
            )
        if self.shape != "one-cycle" and self.pct_start != type(self).model_fields["pct_start"].default:
            raise ValueError(f"expected shape = 'one-cycle' for pct_start, got {self.shape!r}; remove pct_start")
        return self

    @model_validator(mode="after")
    def _accelerated(self) -> Schedule:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            found = f"momentum {self.momentum:g}" if self.optimizer == "sgd" else repr(self.optimizer)
            raise ValueError(f"expected optimizer = 'sgd' with momentum for nesterov, got {found}; remove nesterov")
        return self

    @model_validator(mode="after")
    def _drops(self) -> Schedule:
        if self.factors is not None and len(self.factors) != len(self.milestones):
            raise ValueError(f"expected one factor a milestone, got {len(self.factors)} for {len(self.milestones)}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"expected rising milestones, got {list(self.milestones)}")
        if self.milestones and self.shape != "step":
            raise ValueError(f"expected no milestones with shape {self.shape!r}, got {list(self.milestones)}")
        for key in ("sar", "awp", "average"):
            part = getattr(self, key)
            if part is not None and part.start == "first-drop" and not self.milestones:
                raise ValueError(
                    f"expected milestones, for {key}.start = 'first-drop', got none; give {key}.start an epoch"
                )
        return self

    @model_validator(mode="after")
    def _aligned(self) -> Schedule:
        if self.sar is None or self.sar.reference == "model":
            return self
        if self.average is None:
            raise ValueError("expected a table average for sar.reference = 'average', got none; add one")
        sar, average = (self.milestones[0] if s == "first-drop" else s for s in (self.sar.start, self.average.start))
        if int(sar) < int(average):
            raise ValueError(f"expected sar.start at or after average.start, epoch {average}, got {sar}; change one")
        return self


DISTILLING = ("ard", "rslad")


def _is_users(name: str) -> bool:
    """Whether a network's name is of a factory of the user's own."""
    return ":" in name and not name.startswith(("torchvision:", "timm:"))


def _expect_both(share: float, batch_size: int) -> None:
    if not 0 < round(share * batch_size) < batch_size:
        raise ValueError(
            f"expected a batch_size of which extra.share = {share:g} is an image or more, not all, got {batch_size}; "
            "raise it"
        )


def _refuse_conflicts(train: Training, method: str, schedule: Schedule) -> None:
    """Raises ValueError where a method, its schedule, and the images and attack of [train] do not go together."""
    mix, sar = train.mix, schedule.sar
    if schedule.teacher is not None and method not in DISTILLING:
        raise ValueError(f"expected method 'ard' or 'rslad' for a table teacher, got {method!r}; remove the table")
    if train.extra is not None and train.extra.share and schedule.epochs:
        _expect_both(train.extra.share, schedule.batch_size)
    if method == "natural" and (sar or (mix and mix.on == "adversarial")):
        raise ValueError("expected a method with an attack for sar or a mix of adversarial images, got 'natural'")
    if method != "natural" and train.low_pass is not None:
        raise ValueError(f"expected method = 'natural' for low_pass, got {method!r}")
    if sar is not None and mix is not None and mix.on == "adversarial":
        raise ValueError("expected sar or a mix of adversarial images, which have no pair, got both; remove one")
    if method not in ("natural", "at") and mix is not None:
        raise ValueError(f"expected method 'at' or 'natural' for mixed images, got {method!r}; remove mix")
    if method == "trades" and train.attack.kind != "pgd":  # it ascends the divergence, in many steps
        raise ValueError(f"expected attack.kind = 'pgd' for 'trades', got {train.attack.kind!r}")
    if method == "trades" and train.attack.keep == "best":  # by the lead of a wrong class, which it does not ascend
        raise ValueError("expected attack.keep = 'last' for 'trades', got 'best'; remove it")
    if train.class_weights and (method == "rslad" or (mix is not None and mix.loss == "bce")):
        raise ValueError(
            "expected cross-entropy to labels for class_weights, got 'rslad' or mix.loss = 'bce'; remove one"
        )
    if train.smoothing and (method == "mart" or mix):
        raise ValueError("expected no label smoothing with mart or mixed labels, got some; remove smoothing")


class Training(Schedule):
    """Training of the float network, and the method and attack that the quantised ones are trained with too."""

    method: Literal["natural", "at", "trades", "mart", "ard", "rslad"] = "at"
    """Loss: on clean images, on adversarial ones (adversarial training), TRADES or MART; `ard` and `rslad` distil on
    adversarial images from the network of the table `train.teacher`."""
    beta: Weight = 6.0
    """Weight of the second term of `trades` and `mart`."""
    temperature: Positive = 1.0
    """Temperature of the logits of `ard`."""
    share: Annotated[Float, Field(ge=0, le=1)] = 5 / 6
    """Share of the adversarial term of `ard` and `rslad`; the rest is the clean term's."""
    smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: share of the target that is spread evenly over all classes."""
    class_weights: ClassWeights | None = None
    """Weights of the classification term, one a class, or `"balanced"`: n / (classes · n_k); left out: all 1."""
    low_pass: Count | None = None
    """Bandwidth, in frequencies, that natural training keeps of its images (L-model); left out: all."""
    fat: Fat = "none"
    """Form of the frequency-aware transformation (FAT) of inner convolutions' weights; it is folded into them when
    training ends.
    """
    precision: Literal["float32", "tf32", "bf16", "auto"] = "float32"
    """Precision of the forward and backward passes; `"auto"`: bf16 where the processor or GPU has instructions for it,
    else float32."""
    attack: TrainingAttack = TrainingAttack()
    mix: Mix | None = None
    extra: Extra | None = None
    validation: Validation = Validation()
    log_frequency_ratio: bool = False
    """Whether the first activation's low to high frequencies go into the metrics of every epoch."""

    @model_validator(mode="after")
    def _composed(self) -> Training:
        if self.epochs and self.method in DISTILLING and self.teacher is None:
            raise ValueError(f"expected a table teacher for method {self.method!r}, got none; add one")
        _refuse_conflicts(self, self.method, self)
        return self


class Quantisation(Schedule):
    """Quantisation-aware training of each width below 32, which need it."""

    start_from: Literal["previous", "float", "initial"] = "previous"
    """What each width is trained from: the `"previous"` one, the `"float"` network, or the `"initial"` weights that the
    float network too was trained from."""
    method: Literal["natural", "at", "trades", "mart", "ard", "rslad"] | None = None
    """Loss; left out: that of [train]. `ard` and `rslad` distil on adversarial images from the float network, or from
    that of a table `quant.teacher`."""
    layers: dict[str, Bits] = Field(default_factory=dict)
    """Widths of layers that do not follow the network's, by name or pattern, as `{"layer3.*" = 8}`."""
    activation_bits: Width | None = None
    """Width of what inner layers read; left out: that of their weights."""
    straight_through: Literal["clipped", "unclipped"] = "clipped"
    """Whether gradients of activations stop outside the quantiser's clip, or pass."""
    precision: Literal["float32", "tf32"] = "float32"
    """Precision of the passes; a coarser one would round what lies on the quantisers' grids."""
    fat: Fat = "normalised"
    """Form of the frequency-aware transformation (FAT) of inner convolutions' weights."""
    edge_layers: Literal["int8", "float"] = "int8"
    """Weights and inputs of the first layers and of the classifier."""
    classifier: Literal["int8", "float", "n"] | None = None
    """Weights and inputs of the classifier alone; left out: as `edge_layers`."""
    shortcuts: Literal["n", "int8", "float"] = "n"
    """What residual sums read: `"n"`: what a layer reads too has its width, else 8 bits; `"int8"`: 8 bits always, at
    some of the speed; `"float"`, as in the papers on FAT, which targets that require integer convolutions (ort-cpu)
    refuse: choose `compact`."""
    activation_range: Literal["narrow", "full"] = "narrow"
    """Levels of signed inner activations (hardtanh): as many below 0 as above, or one more below."""
    unsupported: Literal["float", "refuse"] = "float"
    """What has no integer form (LayerNorm, attention): stays in float between quantisers, or is an error."""
    per_channel: bool = True
    """Whether weights have a clip, and so a scale, for each output channel, not one for the layer."""
    calibration: Count = 512
    """Training images that place the clips before training."""
    calibrator: Literal["mse", "min-max", "percentile-99.9", "percentile-99.99"] = "mse"
    """What places them: the least squared error, the largest values, or the share of an activation's values that is
    kept."""
    ptq: Ptq | None = None

    @model_validator(mode="after")
    def _without_training(self) -> Quantisation:
        if self.ptq is not None and self.epochs:
            raise ValueError(f"expected epochs = 0 with a table ptq, got {self.epochs}; training repairs by itself")
        if self.ptq is not None and self.fat != "none":
            raise ValueError(f"expected fat = 'none' with a table ptq, got {self.fat!r}; its masks need training")
        return self

    @model_validator(mode="after")
    def _trained(self) -> Quantisation:
        if self.start_from == "initial" and not self.epochs:
            raise ValueError("expected epochs above 0 for start_from = 'initial', got 0; give some")
        return self


def _with_float(bits: tuple[int, ...]) -> tuple[int, ...]:
    if not bits or list(bits) != sorted(set(bits), reverse=True):
        raise ValueError(f"expected widths that fall, as [32, 4, 2], got {list(bits)}")
    return bits if bits[0] == 32 else (32, *bits)


class Recipe(Table):
    """A whole recipe."""

    name: Name
    """Name of the recipe and of its run folder below `runs/`; left out: that of the file."""
    seed: Int = 0
    """Seed of everything random: split, weights, batches, attacks."""
    threads: Count | None = None
    """Threads of torch on the CPU; left out: chosen by a short trial."""
    tensorboard: bool = False
    """Whether events of every epoch are written into the run folder; needs the extra `tensorboard`."""
    on_event: str | None = None
    """Function that hears of every epoch and stage, `package.module:function` or `FILE.py:function`; left out: none."""
    bits: Annotated[tuple[Bits, ...], AfterValidator(_with_float)] = (32, 4, 2)
    """Widths in bits, falling from 32, the float network, always made; each is trained from the one before it, unless
    `quant.start_from` says otherwise."""
    data: Data
    model: Model
    threat: ThreatModel
    train: Training = Training(epochs=0)
    quant: Quantisation | None = None
    evaluate: Evaluation = Evaluation()
    export: Export = Export()
    bench: Benchmark = Benchmark()
    attack: Attacking | None = None
    analyze: Analysis | None = None
    claim: dict[str, Any] = Field(default_factory=dict)
    """Numbers that a paper prints; nothing reads them but people."""
    departures: dict[str, str] = Field(default_factory=dict)
    """Where the recipe does otherwise than that paper, a sentence each, under a name; likewise."""

    @model_serializer(mode="wrap")
    def _without_unused(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later only where they are used, so that keys of older runs stay what they were."""
        later = ("tensorboard", "on_event", "departures", "analyze")
        return {key: value for key, value in plain(self).items() if key not in later or value}

    @model_validator(mode="after")
    def _widths(self) -> Recipe:
        if len(self.bits) > 1 and self.quant is None:
            raise ValueError("expected a table [quant] for widths below 32, got none; add one")
        return self

    @model_validator(mode="after")
    def _trained(self) -> Recipe:
        if not (self.train.epochs or self.model.weights or _is_users(self.model.name)):
            raise ValueError(
                "expected train.epochs above 0, model.weights, or a factory as model.name that loads its own weights, "
                "got none of them; add one"
            )
        return self

    @model_validator(mode="after")
    def _enough(self) -> Recipe:
        wanted, stored = self.attack and self.attack.n, self.export.suite_n or self.evaluate.n
        if wanted and stored and wanted > stored:
            raise ValueError(f"expected attack.n of at most {stored}, the suite's images, got {wanted}; lower it")
        return self

    @model_validator(mode="after")
    def _attacked(self) -> Recipe:
        if self.quant is not None:
            try:
                _refuse_conflicts(self.train, self.quant.method or self.train.method, self.quant)
            except ValueError as error:
                raise ValueError(f"in training for [quant], {error}") from error
        return self
