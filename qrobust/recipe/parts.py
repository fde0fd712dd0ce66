"""Tables of a recipe: images, network, threat, what is added to a training, what is done with the networks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..resources import unplaced
from .values import (
    CallSize,
    Count,
    Distance,
    Float,
    Form,
    Int,
    PerChannel,
    Positive,
    Radius,
    Scale,
    Seconds,
    Size,
    Start,
    Table,
    Threads,
    Weight,
    _above_zero,
    further_options,
)


def _without(table: dict[str, Any], **usual: Any) -> dict[str, Any]:
    """A table without the keys that have these values."""
    return {key: value for key, value in table.items() if key not in usual or value != usual[key]}


class Data(Table):
    """Which images, and how many of them; where `name` is a function of your own, other keys are its options."""

    name: str
    """Source of the images: `digits`, `spectral-shapes`, `cifar10`, `cifar100`, `tiny-imagenet`, `folder` or `npz`."""
    root: str | None = None
    """Folder of the data set (`npz`: its file), from where the command is started; left out: `data`."""
    download: bool = False
    """Whether missing files may be fetched (`cifar10`, `cifar100`)."""
    train_size: Count | None = None
    """Images taken at random for training and validation together; left out: all."""
    test_size: Count | None = None
    """Images taken at random for testing; left out: all."""
    validation: Annotated[Float, Field(ge=0, le=0.5)] = 0.1
    """Share of the training images that is set aside, stratified, to choose the best epoch."""
    size: Size | None = None
    """Side in pixels, or [height, width], that images are resized and cropped to; left out: as they are."""
    cache: str | None = None
    """Folder of decoded images, mapped instead of held in memory (`folder`); left out: in memory."""
    texture: Annotated[Float, Field(ge=0, le=1)] | None = None
    """Share of the images whose texture agrees with the label (`spectral-shapes`); left out: 0.8."""
    test_share: Annotated[Float, Field(gt=0, le=0.5)] | None = None
    """Share of the training images that is set aside for testing where none are; left out: 0.2."""
    skip_unreadable: bool = False
    """Whether files that are no whole images are left out, counted and listed (`folder`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of your own function: what else the table holds."""
    crop: Annotated[Int, Field(ge=0)] = 0
    """Zeros around a training image, in pixels, before a random crop to its size; 0: no crop."""
    resized_crop: Scale | None = None
    """Least and largest share of a training image's area, as `[0.25, 1.0]`, that a random window with sides of 3 to 4
    up to 4 to 3 has, which is resized (bilinear) to the image's size; left out: none."""
    flip: bool = False
    """Whether training images are mirrored left to right at random."""

    @model_serializer(mode="wrap")
    def _without_unset(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later only where they are used, so that keys of runs on other images stay what they were."""
        later = ("texture", "test_share", "skip_unreadable", "options", "resized_crop")
        return {key: value for key, value in plain(self).items() if key not in later or value not in (None, False, {})}

    @model_validator(mode="after")
    def _cropped(self) -> Data:
        if self.crop and self.resized_crop is not None:
            raise ValueError(f"expected crop or resized_crop, got both, crop = {self.crop}; remove one")
        return self

    @model_validator(mode="before")
    @classmethod
    def _further(cls, table: Any) -> Any:
        return further_options(table, cls.model_fields)


class Model(BaseModel):
    """Which network; other keys are its options. As a teacher: whom `ard` and `rslad` learn from, in [train] always, in
    [quant] where it is not the run's float network."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    """[Network](#networks), or yours: `FILE.py:factory`, `package.module:factory`, `torchvision:NAME` or `timm:NAME`;
    other keys of the table are its options."""
    weights: str | None = None
    """File that the network starts from (.safetensors, .pth or .pt); left out: random weights, of a teacher those that
    a factory of yours loads."""
    mean: PerChannel = ()
    """Subtracted from images inside the network, one number or one a channel, pixels in [0, 1]."""
    std: Annotated[PerChannel, AfterValidator(_above_zero)] = ()
    """What images are divided by then, likewise."""
    sha256: str | None = None
    """Digest of the factory's file; a run writes it, and another file is refused; left out: any."""

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
    """What the attacker may do to an image: move it by eps in a norm, within [0, 1]."""

    norm: Literal["linf", "l2"] = "linf"
    """`"linf"`: the largest change of a value; `"l2"`: the length of all changes together."""
    eps: Radius
    """Largest change in that norm, pixels counted in [0, 1], as `"8/255"`."""


class TrainingAttack(Table):
    """The attack inside training, of the float network and of the quantised ones."""

    kind: Literal["pgd", "fgsm-rs", "n-fgsm"] = "pgd"
    """Many steps, or one step from a random start (FGSM-RS) or from noise around the image (N-FGSM)."""
    steps: Count = 7
    """Steps of `pgd`; the other kinds take one."""
    step_size: Radius | None = None
    """Length of a step, pixels in [0, 1]; left out: eps/4 for `pgd`, 1.25 eps for `fgsm-rs`, eps for `n-fgsm`."""
    random_start: bool = True
    """Whether it starts at a random point of the ball, not at the image."""
    start: Literal["ball", "near"] = "ball"
    """Where a random start of `pgd` lies: anywhere in the `"ball"`, or `"near"` the image, 0.001 · N(0, 1) from it, as
    the authors of MART have it. `trades` starts there always."""
    keep: Literal["last", "best"] = "last"
    """Which point of its way is learned from: the `"last"`, as published, or the `"best"` for the attacker."""
    mode: Literal["eval", "train"] = "eval"
    """Mode of batch-norm during the attack; in `train` the attack moves its statistics."""
    warmup: Annotated[Int, Field(ge=0)] = 0
    """Epochs of the float network before the attack has all of its eps: in epoch e, from 1, it has e / (warmup + 1) of
    it and of its step. A transformer learns little from the whole eps at first."""

    @model_serializer(mode="wrap")
    def _without_usual(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `warmup` or `start` where they are the usual ones, so that keys of older runs stay what they were."""
        return _without(plain(self), warmup=0, start="ball")

    @model_validator(mode="after")
    def _started(self) -> TrainingAttack:
        if self.start == "near" and not (self.kind == "pgd" and self.random_start):
            raise ValueError("expected kind = 'pgd' with a random start for start = 'near', got another; remove start")
        return self


class Sar(Table):
    """Spectral alignment of clean and adversarial logits, a term of the loss; none where the table is left out."""

    weight: Weight = 0.1
    """Weight of the term; of the form "batch" it belongs to a batch size."""
    form: Form = "batch"
    """Fourier transform over images and classes (`"batch"`), as the authors' earlier code, or over each image's classes
    (`"sample"`), as the paper's equation 3."""
    distance: Distance = "l1"
    """Distance of the two transforms."""
    start: Start = "first-drop"
    """First epoch with the term, counted from 0, or the first milestone."""
    reference: Literal["model", "average"] = "model"
    """Whose clean logits are aligned to: the model's own (SAR) or its weight average's (SARWA)."""


class Awp(Table):
    """Adversarial weight perturbation: gradients are taken at weights moved uphill; none where it is left out."""

    gamma: Weight = 0.01
    """Length of the move as a share of each layer's weight norm."""
    start: Start = 0
    """First epoch with it, counted from 0, or the first milestone."""


class Average(Table):
    """Averaging of weights during training; none where the table is left out."""

    kind: Literal["equal", "exponential"] = "equal"
    """`"equal"`: the mean over epochs; `"exponential"`: a moving mean over steps."""
    decay: Annotated[Float, Field(gt=0, lt=1)] = 0.999
    """Share of the exponential mean that a step leaves."""
    warmup: bool = False
    """Whether the exponential mean forgets its first steps sooner: step t, from 0 at its start, leaves
    min(decay, (1 + t) / (10 + t)) of it. With `start = 0` and `statistics = "copied"` it is the average that the best
    published trainings deploy."""
    start: Start = "first-drop"
    """First epoch that is averaged, counted from 0, or the first milestone."""
    statistics: Literal["augmented", "plain", "copied"] = "augmented"
    """The average's batch-norm statistics: taken anew in every epoch over images augmented as in training, as the
    authors of SARWA do, or over plain ones; or `"copied"` from the network."""
    deploy: bool = False
    """Whether the average, not the trained network, is evaluated, quantised and exported."""

    @model_serializer(mode="wrap")
    def _without_usual(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later only where they are used, so that keys of older runs stay what they were."""
        return _without(plain(self), statistics="augmented", warmup=False)

    @model_validator(mode="after")
    def _warmed(self) -> Average:
        if self.warmup and self.kind != "exponential":
            raise ValueError(f"expected kind = 'exponential' for warmup, got {self.kind!r}; remove warmup")
        return self


class Mix(Table):
    """Images and labels mixed within a batch; none where the table is left out."""

    kind: Literal["mixup", "cutout", "cutmix"]
    """Two images blended, a patch set to 0, or a patch from another image."""
    on: Literal["clean", "adversarial"] = "clean"
    """`"clean"`: mixed before the attack; `"adversarial"`: after it."""
    alpha: Positive = 1.0
    """The share that is mixed is drawn from Beta(alpha, alpha), anew for each image; 1: uniform."""
    loss: Literal["bce", "ce"] = "bce"
    """Binary cross-entropy of every class, or cross-entropy with mixed labels."""
    border: Literal["clip", "inside"] = "clip"
    """Where patches of `cutmix` lie: their centre anywhere and what is beyond the border lost (`"clip"`), so that they
    are smaller than their share, or wholly `"inside"`, as those of `cutout` always do."""

    @model_serializer(mode="wrap")
    def _without_usual(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `border` where it is the usual one, so that keys of older runs stay what they were."""
        return _without(plain(self), border="clip")

    @model_validator(mode="after")
    def _bordered(self) -> Mix:
        if self.border == "inside" and self.kind != "cutmix":
            raise ValueError(f"expected kind = 'cutmix' for border = 'inside', got {self.kind!r}; remove border")
        return self


class Extra(Table):
    """A second source of training images, as generated ones, a fixed share of every batch; none where it is left out.

    An epoch is one pass over the images of [data], of which a batch then has fewer; passes over these go on from epoch
    to epoch. They are labelled as [data] is, by names of classes where there are some, and augmented alike.
    """

    name: str
    """`npz` (arrays x_train and y_train, x and y, or image and label), `folder`, or a function of yours, as for
    [data]."""
    root: str | None = None
    """Folder of its images (`npz`: its file), from where the command is started; left out: `data`."""
    share: Annotated[Float, Field(ge=0, le=0.95)]
    """Share of a batch that is from here; 0.7 to 0.875 in published trainings with a million generated images."""
    size: Size | None = None
    """Side in pixels, or [height, width], that images are resized and cropped to; left out: as they are."""
    cache: str | None = None
    """Folder of decoded images, mapped instead of held in memory (`folder`); left out: in memory."""
    skip_unreadable: bool = False
    """Whether files that are no whole images are left out (`folder`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of your own function: what else the table holds."""
    sha256: str | None = None
    """Fingerprint of the images; a run records it, and others are another training; left out: any."""

    @model_validator(mode="before")
    @classmethod
    def _further(cls, table: Any) -> Any:
        return further_options(table, cls.model_fields)

    def identity(self) -> dict[str, Any]:
        """What decides a training: all keys but the places, since the images have a fingerprint."""
        return {
            **self.model_dump(mode="json", exclude={"root", "cache", "skip_unreadable"}),
            "name": unplaced(self.name),
        }


class Ptq(Table):
    """Repair of widths that no training follows (`quant.epochs = 0`), each made from the float network; none where the
    table is left out."""

    bias_correction: bool = True
    """Whether biases take the mean difference of a layer's outputs from the float network's."""
    adaround: Annotated[Int, Field(ge=0)] = 100
    """Steps in which it is learned which weights to round up; 0: to nearest."""
    equalize: bool = False
    """Whether ranges of neighbouring layers' channels are made alike before (cross-layer equalisation)."""


class Validation(Table):
    """`strong:quick` on the validation split; the epoch that it leaves most of is kept."""

    every: Count = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    steps: Count = 20
    """Gradient steps that an image takes at most, Square's queries counting half: up to 30 of APGD on the margin, the
    cascade's first part; from 81 on those of another start too, from 232 on all of it."""

    @model_validator(mode="before")
    @classmethod
    def _without_step(cls, table: Any) -> Any:
        """`step_size`, of recipes from before APGD, which finds its own, is not read."""
        return {key: value for key, value in table.items() if key != "step_size"} if isinstance(table, dict) else table


class Evaluation(Table):
    """Evaluation in torch, before the export."""

    attacks: tuple[str, ...] = ("fgsm", "pgd-20", "strong")
    """[Names of attacks](#names-of-attacks); the worst case is over the bounded ones."""
    n: Count | None = None
    """Test images, a stratified choice; left out: all."""
    batch_size: Count = 250
    """Images of a pass."""

    @model_validator(mode="after")
    def _some(self) -> Evaluation:
        if not self.attacks:
            raise ValueError("expected at least one attack, got none; a clean accuracy says nothing of robustness")
        return self


class Export(Table):
    """Where the artifact must run, and the suite of adversarial images that travels with it."""

    target: str = "ort-cpu"
    """Deployment target: a name of `qrobust targets`, or a path."""
    input: Literal["float32-nchw", "uint8-nhwc"] = "float32-nchw"
    """What the file reads: floats in [0, 1], channels first, or bytes as a camera gives them, channels last."""
    suite_n: Count | None = None
    """Test images of the suite; left out: as many as are evaluated."""
    suite_attacks: tuple[str, ...] = ("strong",)
    """Names of the attacks that make its adversarial images."""


class Attacking(Table):
    """White-box attacks on the exported file itself; none where the table is left out."""

    attacks: tuple[str, ...] = ("strong",)
    """Names of the attacks."""
    n: Count | None = None
    """Images of the suite; left out: all."""


class Analysis(Table):
    """Figures in frequencies, measured for the report at the end of a run; none where the table is left out."""

    figures: Annotated[tuple[str, ...], Field(min_length=1)] = ("low-pass", "mean-spectrum", "heat-map")
    """Names as of `qrobust analyze --figures`."""
    n: Count | None = None
    """Test images; left out: 500, or all."""


class Benchmark(Table):
    """Timing of the artifacts, side by side."""

    batches: Annotated[tuple[CallSize, ...], Field(min_length=1)] = (1, 32)
    """Images of a call, each size timed on its own."""
    threads: Threads = 1
    """Threads of the runtime; 0: as many as it likes."""
    seconds: Seconds = 2.0
    """Least time of a batch size, in seconds, all artifacts together."""
