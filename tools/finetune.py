"""`geo3d finetune` from a checkout: `python tools/finetune.py segment --init runs/spark3d-001`."""

from geo3d.cli import command_line, finetune

if __name__ == "__main__":
    command_line.run(finetune.main, "finetune.py")
