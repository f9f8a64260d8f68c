"""The main job in one command: fine-tunes a small RoBERTa on a sample of SST-2 with DWMGrad.

Needs Python and nothing else: it makes a virtual environment first. Arguments go to
scripts/run_glue.py, so `--optim adamw_torch` compares.
"""

import sys

from environment import ROOT, prepare, run, say

NEXT = """
Next, the real thing (downloads roberta-base and MRPC, wants a GPU):

  {python} scripts/run_glue.py configs/glue/mrpc.yaml
  {python} scripts/run_glue.py configs/glue_lora/mrpc.yaml
"""

if __name__ == "__main__":
    python = prepare("glue")
    say("training: python scripts/run_glue.py configs/demo.yaml")
    run([str(python), "scripts/run_glue.py", "configs/demo.yaml", *sys.argv[1:]])
    print(NEXT.format(python=python.relative_to(ROOT)))
