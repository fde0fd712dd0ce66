"""The tables of a recipe: keys, types, ranges, defaults, and what must go together."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..runtime import MAX_THREADS

Form = Literal["batch", "sample"]
Distance = Literal["l1", "l2", "cosine"]
Width = Literal[2, 3, 4, 5, 6, 7, 8]
Bits = Literal[Width, 32]
Fat = Literal["paper", "normalised", "identity", "none"]


def _fraction(value: Any) -> Any:
    """'8/255' as a number."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _radius(value: Any) -> Any:
    value = _fraction(value)
    if isinstance(value, (int, float)) and value > 1:
        raise ValueError("expected a share of the pixel range [0, 1]; write '8/255', not 8")
    return value


def _start(value: Any) -> Any:
    if value != "first-drop" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("expected an epoch, counted from 0, or 'first-drop'")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts among the integers
        raise ValueError("expected a number")
    return value


def _folder(value: str) -> str:
    """A name is also where a run lies, below `runs/`."""
    parts = value.split("/")
    if "\\" in value or not value.isprintable() or not all(part.strip(". ") for part in parts) or len(value) > 150:
        raise ValueError(f"expected a printable name that can name a folder, got {value[:50]!r}")
    return value


Name = Annotated[str, AfterValidator(_folder)]
Start = Annotated[int | Literal["first-drop"], BeforeValidator(_start)]
Radius = Annotated[float, BeforeValidator(_number), BeforeValidator(_radius), Field(ge=0, le=1)]
Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, BeforeValidator(_number), Field(gt=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Threads = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MAX_THREADS)]  # 0: as many as the runtime likes
CallSize = Annotated[int, BeforeValidator(_number), Field(gt=0, le=2**16)]  # images of one call
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=86_400)]  # a day at most
Weight = Annotated[float, BeforeValidator(_number), Field(ge=0)]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, (int, float, str)) else value


def _above_zero(value: tuple[float, ...]) -> tuple[float, ...]:
    if not all(one > 0 for one in value):
        raise ValueError("expected numbers above 0")
    return value


PerChannel = Annotated[tuple[Float, ...], BeforeValidator(_one_or_more)]


class Table(BaseModel):
    """A TOML table: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Table):
    """Which images, and how many of them."""

    name: str
    root: str | None = None
    download: bool = False
    train_size: Count | None = None
    test_size: Count | None = None
    validation: Annotated[Float, Field(ge=0, le=0.5)] = 0.1
    size: Count | None = None
    cache: str | None = None  # folder of decoded images, mapped instead of held in memory
    texture: Annotated[Float, Field(ge=0, le=1)] | None = None  # share that agrees with the label
    crop: Annotated[Int, Field(ge=0)] = 0  # padding of the random crop, pixels
    flip: bool = False

    @model_serializer(mode="wrap")
    def _without_unset(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `texture` where there is none, so that keys of runs on other images stay what they were."""
        return {key: value for key, value in plain(self).items() if key != "texture" or value is not None}


class Model(BaseModel):
    """Which network; other keys are its options.

    name: of the registry, or a user's own: "FILE.py:factory", "package.module:factory", "torchvision:NAME" or
    "timm:NAME". weights: a file (.safetensors, .pth, .pt) that it starts from. mean, std: it reads (x - mean) / std, by
    one number or one a channel. sha256: of the factory's file; a run writes it, and another file is refused.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str
    weights: str | None = None
    mean: PerChannel = ()
    std: Annotated[PerChannel, AfterValidator(_above_zero)] = ()
    sha256: str | None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key that is not used, so that keys of older runs stay what they were."""
        own = ("weights", "mean", "std", "sha256")
        return {key: value for key, value in plain(self).items() if key not in own or value not in (None, [], ())}

    @model_validator(mode="after")
    def _own(self) -> Model:
        if taken := sorted({"in_channels", "classes"} & self.options.keys()):
            raise ValueError(f"expected no {taken[0]!r}, which follows from the data, got one; remove it")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What the network's builder takes besides channels and classes."""
        return dict(self.__pydantic_extra__ or {})


class ThreatModel(Table):
    """What the attacker may do: all images within eps (in units of [0,1]) in a norm."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Radius


class TrainingAttack(Table):
    """The attack inside training. step_size None: what its kind is published with, eps/4 for pgd, 1.25 eps for
    fgsm-rs, eps for n-fgsm. keep: which of the points that an image passes is learned from: the "last", as published,
    or the "best" for the attacker.
    """

    kind: Literal["pgd", "fgsm-rs", "n-fgsm"] = "pgd"
    steps: Count = 7  # of pgd; the others take one
    step_size: Radius | None = None
    random_start: bool = True
    keep: Literal["last", "best"] = "last"
    mode: Literal["eval", "train"] = "eval"  # of batch-norm, while attacking


class Sar(Table):
    """Spectral alignment: its weight, form, and first epoch (or the first learning-rate drop).

    reference: whose logits of the clean images are aligned to: the "model"'s own (SAR) or its weight
    "average"'s (SARWA).
    """

    weight: Weight = 0.1
    form: Form = "batch"
    distance: Distance = "l1"
    start: Start = "first-drop"
    reference: Literal["model", "average"] = "model"


class Awp(Table):
    """Adversarial weight perturbation: gradients are taken at weights moved by gamma·‖w‖ along the ascent."""

    gamma: Weight = 0.01
    start: Start = 0


class Average(Table):
    """Weight averaging from `start` on: an equal mean over epochs, or an exponential one over steps.

    statistics: the images on which batch-norm's statistics are taken anew for the mean weights: "augmented" as training
    augments them, which is what the authors of averaging do, or "plain". deploy: whether the averaged network, not the
    trained one, is evaluated, quantised and exported.
    """

    kind: Literal["equal", "exponential"] = "equal"
    decay: Annotated[Float, Field(gt=0, lt=1)] = 0.999  # of the exponential mean, a step
    start: Start = "first-drop"
    statistics: Literal["augmented", "plain"] = "augmented"
    deploy: bool = False

    @model_serializer(mode="wrap")
    def _without_usual(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `statistics` where they are the usual ones, so that keys of older runs stay what they were."""
        return {key: value for key, value in plain(self).items() if key != "statistics" or value != "augmented"}


class Mix(Table):
    """Images and labels mixed within a batch, before the attack ("clean") or after it ("adversarial")."""

    kind: Literal["mixup", "cutout", "cutmix"]
    on: Literal["clean", "adversarial"] = "clean"
    alpha: Positive = 1.0  # of the share's beta distribution
    loss: Literal["bce", "ce"] = "bce"


class Validation(Table):
    """Margin PGD, judged at its best points, on the validation split, after every `every`-th epoch and the last; the
    best epoch is kept.
    """

    every: Count = 1
    steps: Count = 20
    step_size: Radius | None = None  # None: eps/4


class Schedule(Table):
    """Epochs (0: untrained) and SGD. shape "step": `lr` is multiplied by `factors[i]` at epoch `milestones[i]`;
    "cosine": down to 0; "cyclic": up from 0 over the first two fifths, then down to 0.
    """

    epochs: Annotated[Int, Field(ge=0)]
    batch_size: Count = 128
    lr: Positive = 0.1
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    shape: Literal["step", "cosine", "cyclic"] = "step"
    milestones: tuple[Int, ...] = ()
    factors: tuple[Float, ...] | None = None
    gradient_clip: Positive | None = None  # largest norm of all gradients together
    kurtosis: Weight = 0.0  # of KURE, which makes weights easy to quantise
    lipschitz: Weight = 0.0  # of Defensive Quantization's regularisation
    freeze_statistics: Annotated[Int, Field(ge=0)] | None = None  # epoch from which batch-norm's stand still
    estimate_statistics: bool = False  # batch-norm's, once more over the training images at the end
    sar: Sar | None = None
    awp: Awp | None = None
    average: Average | None = None

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


def _refuse_conflicts(train: Training, method: str, sar: Sar | None) -> None:
    """Raises ValueError where a method, alignment and the images and attack of [train] do not go together."""
    mix = train.mix
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
    if train.smoothing and (method == "mart" or mix):
        raise ValueError("expected no label smoothing with mart or mixed labels, got some; remove smoothing")


class Training(Schedule):
    """Training of the float network, and the attack that the quantised ones train against too.

    beta: weight of the second term of trades and mart. temperature: of ard; share: of its and rslad's adversarial
    term; both are methods of [quant]. smoothing: of labels. low_pass: bandwidth that natural
    training keeps of its images (L-model). fat: on the float network's inner convolutions; when training ends it is
    folded into their weights. precision: of the forward and backward passes. log_frequency_ratio: low to high
    frequencies of the first activation, after every epoch, into the metrics.
    """

    method: Literal["natural", "at", "trades", "mart"] = "at"
    beta: Weight = 6.0
    temperature: Positive = 1.0
    share: Annotated[Float, Field(ge=0, le=1)] = 5 / 6
    smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    low_pass: Count | None = None
    fat: Fat = "none"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    attack: TrainingAttack = TrainingAttack()
    mix: Mix | None = None
    validation: Validation = Validation()
    log_frequency_ratio: bool = False

    @model_serializer(mode="wrap")
    def _without_logging(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `log_frequency_ratio` where it is off, so that keys of runs without it stay what they were."""
        return {key: value for key, value in plain(self).items() if key != "log_frequency_ratio" or value}

    @model_validator(mode="after")
    def _composed(self) -> Training:
        _refuse_conflicts(self, self.method, self.sar)
        return self


class Quantisation(Schedule):
    """Quantisation-aware training of each width, from the width before it.

    method: None trains as [train] does; "ard" and "rslad" distil from the float network on adversarial images.
    layers: widths of layers that do not follow the network's, by name or pattern, as {"layer3.*" = 8}.
    straight_through: whether activations' gradients stop outside the clip. precision: of the passes; none that
    would round what lies on the quantisers' grids to a coarser one.
    """

    method: Literal["natural", "at", "trades", "mart", "ard", "rslad"] | None = None
    layers: dict[str, Bits] = Field(default_factory=dict)
    activation_bits: Width | None = None
    straight_through: Literal["clipped", "unclipped"] = "clipped"
    precision: Literal["float32", "tf32"] = "float32"
    fat: Fat = "normalised"
    edge_layers: Literal["int8", "float"] = "int8"
    per_channel: bool = True
    calibration: Count = 512  # images


class Evaluation(Table):
    """Attacks by name, and how many test images (None: all), a stratified choice."""

    attacks: tuple[str, ...] = ("gn", "fgsm", "pgd-20", "cw-inf-20:keep=best", "apgd-ce", "apgd-t")
    n: Count | None = None
    batch_size: Count = 250

    @model_validator(mode="after")
    def _some(self) -> Evaluation:
        if not self.attacks:
            raise ValueError("expected at least one attack, got none; a clean accuracy says nothing of robustness")
        return self


class Export(Table):
    """Where the artifact must run, and the frozen suite that travels with it."""

    target: str = "ort-cpu"
    input: Literal["float32-nchw", "uint8-nhwc"] = "float32-nchw"  # in [0,1], or a camera's bytes
    suite_n: Count | None = None  # None: as many as are evaluated
    suite_attacks: tuple[str, ...] = ("cw-inf-20:keep=best", "apgd-t")


class Attacking(Table):
    """White-box attacks on the exported file itself, by name, and on how many of the suite's images (None: all)."""

    attacks: tuple[str, ...] = ("cw-inf-20x5:keep=best", "apgd-t", "square-500")
    n: Count | None = None


class Benchmark(Table):
    """What is timed."""

    batches: Annotated[tuple[CallSize, ...], Field(min_length=1)] = (1, 32)
    threads: Threads = 1
    seconds: Seconds = 2.0


def _with_float(bits: tuple[int, ...]) -> tuple[int, ...]:
    if not bits or list(bits) != sorted(set(bits), reverse=True):
        raise ValueError(f"expected widths that fall, as [32, 4, 2], got {list(bits)}")
    return bits if bits[0] == 32 else (32, *bits)


class Recipe(Table):
    """A whole recipe. bits: widths that fall; 32, the float network that all are compared with, is always made.
    train: without it, or with epochs = 0, the float network is taken as it is. `claim` holds numbers that a paper
    prints; nothing reads them but people.
    """

    name: Name
    seed: Int = 0
    threads: Count | None = None  # of torch on the CPU; None: chosen by a short trial
    tensorboard: bool = False  # events of every epoch in the run folder; needs the extra of that name
    bits: Annotated[tuple[Bits, ...], AfterValidator(_with_float)] = (32, 4, 2)
    data: Data
    model: Model
    threat: ThreatModel
    train: Training = Training(epochs=0)
    quant: Quantisation | None = None
    evaluate: Evaluation = Evaluation()
    export: Export = Export()
    bench: Benchmark = Benchmark()
    attack: Attacking | None = None
    claim: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_events(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `tensorboard` where it is off, so that keys of older runs stay what they were."""
        return {key: value for key, value in plain(self).items() if key != "tensorboard" or value}

    @model_validator(mode="after")
    def _widths(self) -> Recipe:
        if len(self.bits) > 1 and self.quant is None:
            raise ValueError("expected a table [quant] for widths below 32, got none; add one")
        return self

    @model_validator(mode="after")
    def _trained(self) -> Recipe:
        own = ":" in self.model.name and not self.model.name.startswith(("torchvision:", "timm:"))
        if not (self.train.epochs or self.model.weights or own):
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
                _refuse_conflicts(self.train, self.quant.method or self.train.method, self.quant.sar)
            except ValueError as error:
                raise ValueError(f"in training for [quant], {error}") from error
        return self
