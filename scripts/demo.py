"""The main job in one command: a small RoBERTa on real SST-2 sentences with DWMGrad.

Needs Python and nothing else: it makes a virtual environment first. Arguments go to
scripts/run_glue.py; this does the same work with AdamW:

  python3 scripts/demo.py --optim adamw_torch_fused --output_dir runs/demo-adamw
"""

import sys
from pathlib import Path

from environment import ROOT, prepare, run, say

NEXT = """
Next, the real thing (downloads roberta-base and MRPC, wants a GPU):

  {python} {scripts}/run_glue.py {configs}/glue/mrpc.yaml
  {python} {scripts}/run_glue.py {configs}/glue_lora/mrpc.yaml
"""

if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv} and not (ROOT / ".venv" / "installed-glue").exists():
        print(__doc__ + "\nAfter the first run, --help lists them. docs/scripts.md explains them.")
        sys.exit()
    python = prepare("glue")
    say("training: python scripts/run_glue.py configs/demo.yaml")
    script, config = ROOT / "scripts" / "run_glue.py", ROOT / "configs" / "demo.yaml"
    # from where the user is, as there the paths in argv count
    run([str(python), str(script), str(config), *sys.argv[1:]], Path.cwd())
    if not {"-h", "--help", "--version"} & {*sys.argv}:
        here = Path.cwd() == ROOT
        names = {"python": python, "scripts": ROOT / "scripts", "configs": ROOT / "configs"}
        shown = {name: path.relative_to(ROOT) if here else path for name, path in names.items()}
        print(NEXT.format(**shown))
