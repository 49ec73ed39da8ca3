"""The process of a batch job: loads the scoring script, calls `init()` once, and `run(mini_batch)` as it is told.

Mini-batches come as lines of JSON on standard input, answers go as lines of JSON to the file
descriptor that the second argument names. Whatever the script prints goes to the job's log.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main(script: Path, answers: int) -> int:
    with os.fdopen(answers, "w", buffering=1) as out:
        try:
            module = load(script)
            module.init()
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=out)
            return 1
        print(json.dumps({"ready": True}), file=out)
        for line in sys.stdin:
            print(json.dumps(answer(module, json.loads(line))), file=out)
            sys.stdout.flush()
    return 0


def load(script: Path) -> Any:
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("scoring_script", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answer(module: Any, paths: list[str]) -> dict[str, Any]:
    """The lines that `run` returned for the files `paths`, or its error."""
    try:
        return {"lines": lines(module.run(paths))}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def lines(result: Any) -> list[str]:
    """What `append_row` writes of a result: its items as text, the rows of a DataFrame separated by blanks."""
    if hasattr(result, "to_csv"):
        text: str = result.to_csv(sep=" ", header=False, index=False)
        return text.splitlines()
    if isinstance(result, list | tuple) or type(result).__name__ == "ndarray":
        return [str(item) for item in result]
    raise TypeError(f"run() must return a list or a pandas DataFrame, not {type(result).__name__}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
