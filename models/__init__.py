"""The video diffusion transformer to be accelerated: data, model, sampler, training and quantization."""
