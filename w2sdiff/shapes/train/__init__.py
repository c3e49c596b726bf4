"""Training of the embedded checkpoints, from nothing: python -m w2sdiff.shapes.train all --out DIR.

`vae` and `text` come first, `denoiser` trains the UNet and the transformer on what `pool` made with
them, `lora` starts from the finished UNet, `export` and `card` write the stock folders. `loop` is
the one training loop under all of these.
"""
