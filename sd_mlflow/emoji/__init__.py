"""sd-emoji: a small Stable Diffusion, trained from nothing by this project; its weights are in `weights/`."""
