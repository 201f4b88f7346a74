"""`python -m oa_jax COMMAND ...`: the commands of the program; COMMAND --help shows its flags."""

import importlib
import sys

COMMANDS = {
    "quickstart": "two runs on the embedded synthetic pair: a baseline and GCA_early",
    "train": "train a configuration in a workdir, or go on with it",
    "sweep": "hundreds of runs of a study as a stream through compiled programs",
    "evaluate": "ranks and metrics of a run again, from its checkpoint",
    "recommend": "the best items of every user, or of new histories",
    "export": "a folder that others can load, score with and fine-tune from",
    "report": "tables of finished runs",
    "rules": "rank by simple baselines: popularity, ItemKNN, EASE",
    "inspect": "parameters of a configuration and the memory its training takes",
    "data": "import your own data; list, prepare, describe and check data sets",
    "text": "tables of item texts for LLM4CDSR",
    "bench": "how fast this device is at it",
    "compile": "what a program would cost on devices that are not here",
    "verify": "our models against values of the official codes",
}
WITH_WORDS = ("report", "data", "text", "verify")  # arguments that are not flags
RESUMING = ("quickstart", "train", "sweep")  # given again, they go on where they were


def main(command: str | None = None) -> None:
    """Run `command`, by default the first word of the command line."""
    if command is None:
        command, *rest = sys.argv[1:] or ["--help"]
        if command in ("-h", "--help"):
            print(__doc__)
            for name, purpose in COMMANDS.items():
                print(f"  {name:12s}{purpose}")
            return
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            print(f"error: {command}: no such command: expected one of {known}", file=sys.stderr)
            sys.exit(2)
        # absl names the process so. With a blank in that, Slurm's proctrack/linuxproc does not find
        # it, and no signal comes.
        sys.argv = [f"oa_jax-{command}", *rest]
    try:
        cli = importlib.import_module("oa_jax.commands.cli")
        module = importlib.import_module(f"oa_jax.commands.{command}")
    except (ValueError, TypeError) as error:  # JAX reads its variables when it is imported
        if "jax_" not in str(error).lower():
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.modules["__main__"].__doc__ = module.__doc__  # what absl's --help begins with
    getattr(module, "define_flags", lambda: None)()
    cli.run(module.main, words=command in WITH_WORDS, resumes=command in RESUMING)


if __name__ == "__main__":
    main()
