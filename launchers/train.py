"""Train a recipe:  python launchers/train.py RECIPE [name=value ...]

RECIPE is one of --list, or a function of your own that returns a Trainer: my_experiments:make_trainer, in a module that
can be imported from the working directory.
On several GPUs:  torchrun --nproc-per-node 4 launchers/train.py RECIPE device=cuda --folder RUN
(machines: docs/scaling.md)

A name without a dot is an argument of the recipe (env_id=Hopper-v5 seed=3), or a field of the experiment; dotted names
reach any setting: algo.learning_rate=1e-4  sampler.batch.num_envs=32  agent.model.kwargs.hidden_sizes="(256, 256)"
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from rlsurreal.distributed import group
from rlsurreal.recipes import RECIPES
from rlsurreal.runners import Trainer
from rlsurreal.trained import film_problem, load_experiment
from rlsurreal.utils import config
from rlsurreal.utils.names import find_named
from rlsurreal.utils.text_values import parse_value


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_arguments(argv)
    try:
        if args.list:
            print_recipes()
            return 0
        trainer = resume_experiment(args.resume, args.overrides) if args.resume else build(args.recipe, args.overrides)
        check_restarts(args.folder or args.resume)
        if not args.print_config:
            trainer.check()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.print_config:
        for name, value in config.flatten(trainer).items():
            print(f"{name}={value}")
        return 0
    folder = trainer.train(resume=args.resume, folder=args.folder)
    if os.environ.get("RANK", "0") == "0":
        try:
            report(folder, trainer)
            sys.stdout.flush()
        except BrokenPipeError:  # `| tee log`, say, which Ctrl-C ended, too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.Signals[trainer.interrupted_by].value if trainer.interrupted_by else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as attributes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="name of a recipe, see --list; or module:function")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings to change")
    parser.add_argument("--list", action="store_true", help="list the recipes with their arguments")
    parser.add_argument("--print-config", action="store_true", help="print every setting and stop")
    parser.add_argument(
        "--resume", metavar="RUN", type=Path, help="folder of a run to continue from its latest checkpoint"
    )
    parser.add_argument(
        "--folder",
        metavar="RUN",
        type=Path,
        help="folder of this run: begun there, or continued if it has a checkpoint, so that the same command goes on "
        "after whatever has happened (default: a new folder under the recipe's root)",
    )
    args = parser.parse_intermixed_args(argv)  # settings may stand behind options, too
    if args.resume and args.folder:
        parser.error("--resume and --folder name a folder each; --folder alone continues the run that is there")
    if args.resume and args.recipe:  # without a recipe the first override stands in its place
        if "=" not in args.recipe:
            parser.error(f"--resume takes no recipe, and there is {args.recipe}: the run goes on with its own settings")
        args.overrides.insert(0, args.recipe)
    if not (args.recipe or args.resume or args.list):
        parser.error("name a recipe, or use --list or --resume RUN")
    return args


def build(recipe: str, words: list[str]) -> Trainer:
    """The experiment of a recipe with overrides; ValueError says what is wrong."""
    see_modules_here()
    make = find_recipe(recipe)
    overrides = config.parse_overrides(words)
    signature = inspect.signature(make, eval_str=True)
    arguments = {}
    for name in [name for name in overrides if name in signature.parameters]:
        kind, text = signature.parameters[name].annotation, overrides.pop(name)
        try:
            arguments[name] = parse_value(text, Any if kind is inspect.Parameter.empty else kind)
        except ValueError as error:
            raise ValueError(f"{name}={text}: {error}") from error
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{recipe}: {error}; give it as name=value") from None
    trainer = make(**arguments)
    if not isinstance(trainer, Trainer):
        raise ValueError(f"{recipe} returned {trainer!r}; a recipe returns a Trainer")
    return config.override(trainer, overrides)


def find_recipe(name: str) -> Callable[..., Trainer]:
    """A recipe by its name, or any function by ``module:function``; ValueError if there is none."""
    if ":" in name:
        found: Callable[..., Trainer] = find_named(name)
        return found
    if name not in RECIPES:
        raise ValueError(
            f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}, or name a function of your own: "
            "module:function"
        )
    return RECIPES[name]


def see_modules_here() -> None:
    """Modules in the working directory can be imported, as with ``python -m``."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def check_restarts(folder: Path | None) -> None:
    """ValueError if torchrun is to restart what would then begin anew in another folder."""
    if folder is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise ValueError("torchrun has --max-restarts: add --folder RUN, so that a restarted run goes on where it was")


def resume_experiment(run: Path, words: list[str]) -> Trainer:
    """The experiment that made a run folder, with overrides."""
    see_modules_here()
    return config.override(load_experiment(run), config.parse_overrides(words))


def print_recipes() -> None:
    """Names, arguments and first lines of all recipes."""
    for name, recipe in RECIPES.items():
        arguments = " ".join(f"{p.name}={p.default}" for p in inspect.signature(recipe).parameters.values())
        print(f"{name:14} {(inspect.getdoc(recipe) or '').splitlines()[0]}\n{'':14} {arguments}")


def report(folder: Path, trainer: Trainer) -> None:
    """Say what came out, draw the learning curve, and name the commands that show more."""
    from plot import draw_runs, final_return

    result = final_return(folder)
    if result is None:
        print("\nno game ended: there is no return to show")
    else:
        print(f"\nmean return of the last games: {result:,.1f}")
        picture = draw_runs([folder], folder / "learning_curve.png")
        install = 'pip install -c constraints.txt -e ".[plot]"'
        print(f"learning curve: {picture or f'not drawn: {install}'}")
    here = Path(sys.executable).parent  # of this environment, which may not be the shell's
    tools = f"{os.path.relpath(here)}/" if here.is_relative_to(Path.cwd()) else ""
    files, commands = ["progress.csv", "log.txt", "config.json"], []
    if trainer.checkpoints.keep != "none":
        files.insert(0, "checkpoints/")
        commands.append(f"python launchers/evaluate.py {folder}{'' if film_problem(trainer) else ' --video'}")
    if trainer.tensorboard:
        commands.append(f"tensorboard --logdir {folder}")
    print(f"everything is in {folder}: {', '.join(files)}{'; look at it with' if commands else ''}")
    for command in commands:
        print(f"    {tools}{command}")


if __name__ == "__main__":
    if group.in_group():  # torchrun's account of a failure has the traceback
        main = record(main)  # type: ignore[assignment]
    sys.exit(main())
