"Callbacks and layers that tests of training use."
import torch
from fastai.callback.core import Callback
from torch import nn


class Rates(Callback):
    "Keeps the learning rate of each step, over all stages"
    def __init__(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(self.opt.hypers[-1]['lr'])


class FirstSteps(Callback):
    "Keeps the weights that the first step of each training starts from"
    def __init__(self): self.seen = []
    def before_train(self): self.fresh = True
    def before_batch(self):
        if self.training and self.fresh: self.seen.append(copy(self.learn))
        self.fresh = False


class StopInEpoch(Callback):
    "Breaks a training off at the beginning of an epoch, counted from 0"
    def __init__(self, epoch): self.epoch_to_stop = epoch
    def before_epoch(self):
        if self.epoch == self.epoch_to_stop: raise RuntimeError('stopped')


class SmallMemory(nn.Module):
    "A layer that has memory for so many pictures at a time"
    def __init__(self, n):
        super().__init__()
        self.n = n
    def forward(self, x):
        if len(x) > self.n: raise torch.OutOfMemoryError('CUDA out of memory')
        return x


def copy(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)
