"""`geo3d predict` from a checkout: `python tools/predict.py segment scans/scene0000 --checkpoint runs/swin3d-001`."""

from geo3d.cli import command_line, predict

if __name__ == "__main__":
    command_line.run(predict.main, "predict.py")
