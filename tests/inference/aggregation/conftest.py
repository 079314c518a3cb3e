"""Pipelines to aggregate."""

import pytest
from diffusers import StableDiffusionPipeline


@pytest.fixture(scope="module")
def make(tiny):
    """Makes a pipeline of its own UNet; the other components are shared by all."""
    parts = tiny.make_components()

    def make(kind=StableDiffusionPipeline, *, seed=0, scheduler=None, **more):
        own = {"unet": tiny.make_unet(seed=seed), "scheduler": scheduler or tiny.make_scheduler()}
        pipeline = kind(**parts | own | more)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make
