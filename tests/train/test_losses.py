"The losses against plain NumPy, their gradients, and what fastai asks of them."
import copy, pickle
import numpy as np, pytest, torch
from torch.autograd import gradcheck
from hpa_fastai.data.labels import HPAError
from hpa_fastai.train.losses import (LOSSES, AsymmetricLoss, BCELoss, SigmoidFocalLoss, SoftF1Loss, SymmetricLovaszLoss,
                                     WeightedSumLoss, get_loss)


def np_sigmoid(x): return 1/(1 + np.exp(-x))
def np_bce(x, y, smoothing=0.):
    y = y*(1 - smoothing) + smoothing/2
    return np.mean(-y*np.log(np_sigmoid(x)) - (1 - y)*np.log(np_sigmoid(-x)))

def np_focal(x, y, gamma=2.):
    pt = np.where(y == 1, np_sigmoid(x), np_sigmoid(-x))
    return np.mean(-(1 - pt)**gamma*np.log(pt))

def np_asymmetric(x, y, gn=4., gp=1., clip=.05):
    p = np_sigmoid(x)
    q = np.maximum(p - clip, 0)
    return np.mean(np.where(y == 1, -(1 - p)**gp*np.log(p), -q**gn*np.log(1 - q)))

def np_jaccard_loss(wrong, y):
    "Jaccard distance when the answers in `wrong` (a set of positions) are wrong."
    truth = {i for i in range(len(y)) if y[i]}
    given = truth ^ set(wrong)
    union = truth | given
    return 1 - len(truth & given)/len(union) if union else 0.

def np_lovasz(x, y):
    "Lovász extension by its definition: sorted errors times the increments of the set function."
    total = 0.
    for xi, yi in zip(x, y):
        errors = 1 - xi*(2*yi - 1)
        order = np.argsort(-errors)
        steps = [np_jaccard_loss(order[:k + 1], yi) - np_jaccard_loss(order[:k], yi) for k in range(len(order))]
        total += np.sum(np.maximum(errors[order], 0)*steps)
    return total/len(x)

def np_symmetric_lovasz(x, y): return (np_lovasz(x, y) + np_lovasz(-x, 1 - y))/2

def np_soft_f1(x, y, eps=1.):
    p = np_sigmoid(x)
    return np.mean(1 - (2*np.sum(p*y, 0) + eps)/(np.sum(p + y, 0) + eps))

PAIRS = [(BCELoss(), np_bce), (BCELoss(.1), lambda x, y: np_bce(x, y, .1)),
         (SigmoidFocalLoss(), np_focal), (SigmoidFocalLoss(1.5), lambda x, y: np_focal(x, y, 1.5)),
         (AsymmetricLoss(), np_asymmetric), (AsymmetricLoss(2, 0, .1), lambda x, y: np_asymmetric(x, y, 2, 0, .1)),
         (SymmetricLovaszLoss(), np_symmetric_lovasz), (SoftF1Loss(), np_soft_f1),
         (WeightedSumLoss([SigmoidFocalLoss(), (.3, SymmetricLovaszLoss())]),
          lambda x, y: np_focal(x, y) + .3*np_symmetric_lovasz(x, y))]
names = [repr(p[0])[:40] for p in PAIRS]


def batch(seed, n=6, c=9, rate=.2):
    g = torch.Generator().manual_seed(seed)
    return 2*torch.randn(n, c, dtype=torch.float64, generator=g), (torch.rand(n, c, generator=g) < rate).double()


@pytest.mark.parametrize('loss,reference', PAIRS, ids=names)
@pytest.mark.parametrize('rate', [0., .2, 1.])
def test_equal_to_numpy(loss, reference, rate):
    for seed in range(3):
        x, y = batch(seed, rate=rate)
        assert loss(x, y).item() == pytest.approx(reference(x.numpy(), y.numpy()), rel=1e-9, abs=1e-12)

@pytest.mark.parametrize('loss,_', PAIRS, ids=names)
def test_gradient(loss, _):
    x, y = batch(7)
    assert gradcheck(loss, (x.requires_grad_(), y))

@pytest.mark.parametrize('loss,_', PAIRS, ids=names)
def test_extreme_logits_give_finite_loss_and_gradient(loss, _):
    x = torch.tensor([[60., -60., 60., -60.]], requires_grad=True)
    value = loss(x, torch.tensor([[1., 0., 0., 1.]]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(x.grad).all()

@pytest.mark.parametrize('loss,_', PAIRS, ids=names)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(loss, _, dtype):
    x, y = batch(3)
    with torch.autocast('cpu', dtype=torch.bfloat16): value = loss(x.to(dtype), y.to(torch.uint8))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(x, y).item(), rel=.03)

@pytest.mark.parametrize('target_type', [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32])
def test_targets_of_any_type(target_type):
    x, y = batch(4)
    for loss, _ in PAIRS:
        assert loss(x.float(), y.to(target_type)).item() == pytest.approx(loss(x, y).item(), rel=1e-5)

@pytest.mark.parametrize('loss,_', PAIRS, ids=names)
def test_protocol_of_fastai(loss, _):
    x, y = batch(5)
    again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert again(x, y) == loss(x, y)
    probs = loss.activation(x)
    assert torch.equal(probs, torch.sigmoid(x)) and torch.equal(loss.decodes(probs), probs > .5)
    again.reduction = 'none'
    each = again(x, y)
    assert len(each) == len(x) and each.numel() % len(x) == 0
    if isinstance(again, SoftF1Loss): return
    assert each.reshape(len(x), -1).mean(1).mean().item() == pytest.approx(loss(x, y).item())

def test_subclassed_tensors_come_back_plain():
    from fastai.torch_core import TensorBase, TensorMultiCategory
    x, y = batch(6)
    assert type(SigmoidFocalLoss()(TensorBase(x), TensorMultiCategory(y))) is torch.Tensor

@pytest.mark.parametrize('name', [*LOSSES, 'focal+lovasz', 'bce + 0.5*soft_f1'])
def test_by_name_learns(name):
    torch.manual_seed(0)
    x = torch.randn(200, 10)
    y = (x @ torch.randn(10, 3) > 0).float()
    net, loss = torch.nn.Linear(10, 3), get_loss(name)
    opt = torch.optim.Adam(net.parameters(), .05)
    for _ in range(60):
        opt.zero_grad()
        loss(net(x), y).backward()
        opt.step()
    assert (loss.decodes(loss.activation(net(x))) == y.bool()).float().mean() > .85

@pytest.mark.parametrize('bad,words', [('fokal', "did you mean 'focal'"), ('xyz', 'choose focal'), ('', 'unknown'),
                                       ('focal + much*bce', "'much' is not a number")])
def test_unknown_names(bad, words):
    with pytest.raises(HPAError, match='.*'.join(words.split())): get_loss(bad)

def test_shape_mismatch_is_told():
    with pytest.raises(HPAError, match='multi-hot'): SigmoidFocalLoss()(torch.zeros(4, 3), torch.zeros(4))


STEEP = [SigmoidFocalLoss(g) for g in (0, .01, .1, .5, .99, 1, 2, 5)] \
    + [AsymmetricLoss(n, p, clip) for n in (0, .3, 4) for p in (0, .5, 1) for clip in (0, .05)] \
    + [BCELoss(), BCELoss(.1), SymmetricLovaszLoss(), SoftF1Loss(), get_loss('focal + 0.5*lovasz')]
FAR = torch.tensor([1., 10, 16, 20, 40, 88, 90, 100, 104, 200, 1000, 1e4])

@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('loss', STEEP, ids=repr)
def test_gradients_are_finite_however_sure_the_network_is(loss, dtype, autocast):
    "A power below 1 has no slope at 0, and the probability of the wrong side is exactly 0 from a logit of 104 on"
    for y in (0., 1., .5):
        x = torch.cat([-FAR, torch.zeros(1), FAR]).to(dtype)[None].requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast): value = loss(x, torch.full_like(x, y))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(x.grad).all(), (y, x.grad)

@pytest.mark.parametrize('loss', [SigmoidFocalLoss(.3), AsymmetricLoss(.3, .3, 0), AsymmetricLoss(4, 1, 0)], ids=repr)
def test_gradients_are_right_however_sure_the_network_is(loss):
    "In single precision as in double"
    for y in (0., 1.):
        slopes = []
        for dtype in (torch.float32, torch.float64):
            x = torch.linspace(-80, 80, 41, dtype=dtype)[None].requires_grad_()
            loss(x, torch.full_like(x, y)).backward()
            slopes.append(x.grad.double())
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-9)

@pytest.mark.parametrize('bad', [lambda: SigmoidFocalLoss(-1), lambda: get_loss('asymmetric', gamma_neg=-.1),
                                 lambda: AsymmetricLoss(gamma_pos=float('nan')), lambda: AsymmetricLoss(clip=1),
                                 lambda: BCELoss(1.5), lambda: SoftF1Loss(0)])
def test_settings_without_a_loss_are_refused(bad):
    with pytest.raises(HPAError, match='is not a number from'): bad()
