"""The ``fastconv finetune`` command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

_DEFAULT_LR = {"head": 0.05, "last": 0.005, "all": 0.005}
# Images have three channels, and the loss is that of one output.
BUILT_WITH: dict[str, dict[str, Any]] = {"lenet5": {"in_chans": 3}}
BUILT_WITH |= {name: {"aux_logits": False} for name in ("googlenet", "inception_v3")}


def add_parser(commands: Any) -> None:
    """Add ``fastconv finetune`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser(
        "finetune", help="train a pretrained network on images; goes on where it was stopped"
    )
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="a folder with a folder for each class (or train/ and val/ of "
        "such), or sklearn:digits",
    )
    add("--model", default="mobilenet_v2", help="one of fastconv.models (mobilenet_v2)")
    add("--weights", metavar="FILE", help="pretrained weights; without, it starts at random")
    add(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("finetuned"),
        help="for results (finetuned); the same command again goes on there",
    )
    add(
        "--mode",
        choices=tuple(_DEFAULT_LR),
        default="head",
        help="what is trained: the last "
        "layer, on features that are computed once (head); the last blocks, too; or everything",
    )
    add("--blocks", type=int, default=3, help="how many, for --mode last (3)")
    add(
        "--freeze-norm", action="store_true", help="norms keep their statistics while weights train"
    )
    add("--epochs", type=int, default=10)
    add("--batch", type=int, default=32)
    add("--lr", type=float, help="the highest learning rate (0.05 for a head, else 0.005)")
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=1e-4)
    add("--label-smoothing", type=float, default=0.0)
    add("--size", type=int, default=224, help="of the square images (224)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--augment",
        metavar="LIST",
        help="comma-separated, of crop,mirror,rotate,shear,warp,color,shift,pca (crop,mirror; none "
        "for a head, whose features are computed once)",
    )
    either.add_argument(
        "--no-augment", dest="augment", action="store_const", const="", help="the center of photos"
    )
    add("--augment-strength", type=float, default=1.0, metavar="X", help="0 to 3 (1)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    add("--patience", type=int, default=0, help="stop after so many epochs without a better one")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0, help="processes that read and augment images")
    add("--checkpoint-every", type=float, default=60.0, metavar="SECONDS")
    add("--skip-unreadable", action="store_true", help="leave damaged images out")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from .data import FinetuneError

    try:
        _finetune(arguments)
    except FinetuneError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfinetune: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from .. import models
    from .data import FinetuneError

    rules = {
        "epochs": (1, None),
        "batch": (1, None),
        "size": (32, None),
        "blocks": (1, None),
        "patience": (0, None),
        "workers": (0, None),
        "lr": (0.0, None),
        "momentum": (0.0, 1.0),
        "weight_decay": (0.0, None),
        "label_smoothing": (0.0, 1.0),
    }
    for name, (least, most) in rules.items():
        value = getattr(arguments, name)
        if value is not None and (value < least or (most is not None and value >= most)):
            limit = f"at least {least}" + ("" if most is None else f" and below {most}")
            raise FinetuneError(f"--{name.replace('_', '-')} must be {limit}, got {value}")
    if arguments.model not in models.list_models():
        names = ", ".join(models.list_models())
        raise FinetuneError(f"--model must be one of {names}, got {arguments.model}")
    if arguments.model == "lenet5" and arguments.size != 32:
        raise FinetuneError(f"--size must be 32 for lenet5, got {arguments.size}")


def _finetune(arguments: argparse.Namespace) -> None:
    import torch
    from torch import nn

    from .._memory import keep_freed_memory
    from .._progress import Progress
    from . import checkpoint, data, features
    from .loop import Options, Trainer

    _check(arguments)
    keep_freed_memory()
    strength = arguments.augment_strength
    augmentations = data.augmentations(
        arguments.augment, arguments.mode == "head", arguments.size, strength
    )
    lr = _DEFAULT_LR[arguments.mode] if arguments.lr is None else arguments.lr
    images = data.find(arguments.data, arguments.seed, arguments.skip_unreadable)
    torch.manual_seed(arguments.seed)
    model, name = _network(arguments, len(images.classes))
    sets = {
        name: data.Dataset(entries, arguments.size, names, strength, arguments.seed)
        for name, entries, names in (
            ("train", images.train, augmentations),
            ("held", images.held, ()),
        )
    }
    named = ("epochs", "batch", "momentum", "weight_decay", "label_smoothing", "seed", "dtype")
    options = Options(
        **{name: getattr(arguments, name) for name in (*named, "patience", "workers")},
        lr=lr,
        checkpoint_every=arguments.checkpoint_every,
    )
    facts = {name: getattr(arguments, name) for name in named} | {
        "lr": lr,
        "model": arguments.model,
        "mode": arguments.mode,
        "blocks": arguments.blocks if arguments.mode == "last" else 0,
        "freeze_norm": arguments.freeze_norm,
        "size": arguments.size,
        "augment": list(augmentations),
        "augment_strength": strength if augmentations else 1.0,
        "classes": list(images.classes),
        "images": [len(images.train), len(images.held)],
        "weights": checkpoint.fingerprint(model),
    }
    out: Path = arguments.out
    trained: nn.Module = model
    train: Any = sets["train"]
    held: Any = sets["held"]

    def prepare(module: nn.Module) -> None:
        module.train()
        if arguments.mode == "last":
            for part in _frozen(model, arguments.blocks):
                part.eval()
        if arguments.freeze_norm:
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()

    with Progress() as progress:
        if arguments.mode == "head":
            if arguments.augment is None:
                print("no augmentation: the features of each image are computed once")
            files = [
                features.identity(source) if isinstance(source, str) else label
                for source, label in (*images.train, *images.held)
            ]
            head = model.get_submodule(name)
            backbone = _without(model, name)
            found = features.kept(
                backbone,
                sets,
                out,
                (files, arguments.size),
                arguments.batch,
                options.workers,
                progress,
            )
            train, held = (torch.utils.data.TensorDataset(*found[name]) for name in sets)
            trained = head
            _put(model, name, head)
        trainer = Trainer(
            trained,
            prepare,
            train,
            held,
            options,
            checkpoint.Checkpoints(out),
            facts,
            lambda _: _write_best(model, images.classes, out),
        )
        if trainer.resume():
            print(f"going on from {out}")
        try:
            trainer.run(progress, _show)
        except KeyboardInterrupt:
            trainer.save()
            raise
    _finish(trainer.history, out, arguments.model)


def _network(arguments: argparse.Namespace, classes: int) -> tuple[Any, str]:
    """The network with a new last layer, what is not trained without gradients; and its name."""
    from torch import nn

    from .. import models
    from .data import FinetuneError

    model: Any = models.create_model(arguments.model, **BUILT_WITH.get(arguments.model, {}))
    if arguments.weights is not None:
        try:
            models.load_weights(model, arguments.weights)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            raise FinetuneError(
                f"--weights must be a file that fits {arguments.model}, got {error}"
            ) from error
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if len(names) == 0:
        raise FinetuneError(
            f"--model must be a network that ends with a Linear layer, got {arguments.model}"
        )
    head = nn.Linear(model.get_submodule(names[-1]).in_features, classes)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    _put(model, names[-1], head)
    if arguments.mode == "last":
        parts = _frozen(model, arguments.blocks)
        for part in parts:
            part.requires_grad_(False)
    return model, names[-1]


def _put(model: Any, name: str, layer: Any) -> None:
    """Puts a module in the place of another one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _without(model: Any, name: str) -> Any:
    """The network with nothing in the place of the last layer, frozen."""
    from torch import nn

    _put(model, name, nn.Identity())
    return model.eval().requires_grad_(False)


def _frozen(model: Any, blocks: int) -> list[Any]:
    """What comes before the last blocks."""
    from .data import FinetuneError

    row = getattr(model, "features", None)
    if row is None:
        raise FinetuneError("--mode last must be used with a network that has features, got none")
    if blocks > len(row):
        raise FinetuneError(f"--blocks must be at most {len(row)} for this network, got {blocks}")
    return list(row)[: len(row) - blocks]


def _write_best(model: Any, classes: tuple[str, ...], out: Path) -> None:
    from . import checkpoint
    from .data import FinetuneError

    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise FinetuneError("finetune needs safetensors: pip install safetensors") from error
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    checkpoint.write(out / "best.safetensors", lambda path: save_file(state, path))
    text = "\n".join(classes) + "\n"
    checkpoint.write(out / "classes.txt", lambda path: path.write_text(text, encoding="utf-8"))


def _show(line: dict[str, float]) -> None:
    print(
        f"epoch {line['epoch']:3d}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.4f}  "
        f"{line['images_per_second']:.0f} images/s",
        flush=True,
    )


def _finish(history: list[dict[str, float]], out: Path, name: str) -> None:
    from . import checkpoint

    text = json.dumps(history, indent=1) + "\n"
    checkpoint.write(out / "history.json", lambda path: path.write_text(text))
    if importlib.util.find_spec("matplotlib") is not None:
        from matplotlib.figure import Figure  # not pyplot: it would look for a display

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        epochs = [line["epoch"] for line in history]
        for panel, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            panel.plot(epochs, [line[what] for line in history], marker=".")
            panel.set(title=what, xlabel="epoch")
            panel.spines[["top", "right"]].set_visible(False)
        checkpoint.write(out / "curve.png", lambda path: figure.savefig(path, format="png"))
    else:
        print("no curve.png: pip install matplotlib", file=sys.stderr)
    count = len((out / "classes.txt").read_text(encoding="utf-8").splitlines())
    more = "".join(f", {key}={value}" for key, value in BUILT_WITH.get(name, {}).items())
    print(
        f"best accuracy {max(line['accuracy'] for line in history):.4f}; the weights:\n"
        f"  fastconv.models.create_model({name!r}, num_classes={count}{more}, "
        f"weights={str(out / 'best.safetensors')!r})"
    )
