"fastai's Interpretation of images with several classes counts what there is to count, and leaves other learners alone"
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.all import (CategoryBlock, ClassificationInterpretation, DataBlock, ImageBlock, Interpretation,
                               PILImage, RandomSplitter, vision_learner)

from hpa_fastai.all import HPADataLoaders, HPAError, HPAInterpretation, confusion_table, hpa_learner, macro_f1
from hpa_fastai.train.losses import get_loss


@pytest.fixture(scope='module')
def learn(small_atlas, tmp_path_factory):
    dls = HPADataLoaders.from_csv(small_atlas, size=64, bs=16, cache=tmp_path_factory.mktemp('cache'), progress=False)
    learn = hpa_learner(dls, 'smallresnet').fit_head()
    learn.thresholds = .3
    return learn


@pytest.fixture
def interp(learn):
    with learn.no_bar(): yield HPAInterpretation.from_learner(learn)


def test_confusions_are_those_of_the_confusion_table(learn, interp):
    probs, targets, decided = (o.numpy() for o in learn.get_preds(with_decoded=True))
    found, truth = interp.decisions()
    assert np.array_equal(found, decided) and np.array_equal(truth, targets > 0)
    share = interp.confusion_matrix()/truth.sum(0)[:, None].clip(1)
    want = confusion_table(decided, targets).to_numpy()
    assert np.allclose(share[truth.any(0)], want[truth.any(0)])
    pairs = interp.most_confused()
    assert pairs == sorted(pairs, key=lambda o: -o[2]) and all(a != b and n >= 1 for a, b, n in pairs)
    assert interp.most_confused(10**6) == []


def test_report_is_by_class_and_its_macro_average_is_macro_f1(interp, capsys):
    interp.print_classification_report()
    lines = capsys.readouterr().out.splitlines()
    found, truth = interp.decisions()
    macro = next(line.split() for line in lines if 'macro avg' in line)
    assert float(macro[4]) == pytest.approx(macro_f1(found, truth), abs=.006)
    assert len([line for line in lines if line and line.split()[-1].isdigit()]) == truth.any(0).sum()+4


@pytest.mark.parametrize('normalize', [False, True])
def test_confusion_matrix_is_drawn_with_the_names_of_what_occurs(interp, normalize):
    interp.plot_confusion_matrix(normalize=normalize)
    found, truth = interp.decisions()
    ax = plt.gca()
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        interp.vocab[c] for c in np.flatnonzero(found.any(0) | truth.any(0))]
    numbers = [t.get_text() for t in ax.texts]
    assert len(numbers) == np.count_nonzero(interp.confusion_matrix())
    plt.close('all')


def test_top_losses_are_those_of_their_images_and_shown_with_names(learn, interp):
    probs, targets = learn.get_preds(act=torch.sigmoid)
    losses, places, items = interp.top_losses(4, items=True)
    each = torch.stack([learn.loss_func(torch.logit(p[None]), t[None]) for p, t in zip(probs, targets)])
    assert torch.allclose(losses, each[places], atol=1e-4) and places[0] == each.argmax()
    interp.plot_top_losses(4, nrows=2)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert [t.splitlines()[0] for t in titles] == items.Id.tolist()
    names = learn.dls.labels.classes
    truth = [{names[c] for c in np.flatnonzero(targets[i])} for i in places]
    for title, there in zip(titles, truth):
        lines = title.splitlines()[2:]
        assert there == {line.removeprefix('− ') for line in lines if not line.startswith('+ ')}
    plt.close('all')
    interp.plot_top_losses(range(2, 4), largest=False)
    order = interp.top_losses(None, False)[1][2:4].tolist()
    assert [ax.get_title().splitlines()[0] for ax in plt.gcf().axes] == interp.dl.items.Id.iloc[order].tolist()
    plt.close('all')


@pytest.mark.parametrize('name', ['bce', 'focal', 'focal + 0.5*lovasz', 'asymmetric', 'soft_f1'])
def test_there_is_a_loss_for_each_image(learn, name):
    old = learn.loss_func
    try:
        learn.loss_func = get_loss(name)
        with learn.no_bar(): assert Interpretation.from_learner(learn).losses.shape == (len(learn.dls.valid_ds),)
    finally: learn.loss_func = old


def test_fastais_class_refuses_what_would_be_nonsense_and_names_what_to_take(learn):
    class Mine(ClassificationInterpretation): pass
    with learn.no_bar():
        for kind in (ClassificationInterpretation, Mine):
            theirs = kind.from_learner(learn)
            for method in ('confusion_matrix', 'plot_confusion_matrix', 'most_confused', 'print_classification_report'):
                with pytest.raises(HPAError, match='take HPAInterpretation.from_learner'): getattr(theirs, method)()
            plt.close('all')
            theirs.plot_top_losses(2)
            assert all('loss' in ax.get_title() for ax in plt.gcf().axes)
            theirs.show_results([0, 1])
            plt.close('all')
        assert len(theirs.top_losses(3)[0]) == 3
        assert len(learn.get_preds(with_decoded=True)) == 3


def test_images_without_labels_are_refused(learn, small_atlas):
    with learn.no_bar(), pytest.raises(HPAError, match='no labels, so there is no loss; .* with_labels=True'):
        Interpretation.from_learner(learn, dl=learn.dls.test_dl(small_atlas/'train'))


def test_stock_learner_on_our_loaders_and_other_learners(learn):
    stock = vision_learner(learn.dls, 'resnet10t', n_in=4, n_out=28, pretrained=False, normalize=False,
                           loss_func=get_loss('bce'))
    with stock.no_bar(): assert HPAInterpretation.from_learner(stock).confusion_matrix().shape == (28, 28)
    block = DataBlock((ImageBlock, CategoryBlock(vocab=[0, 1, 2])), get_items=lambda _: list(range(12)),
                      splitter=RandomSplitter(.5, seed=0), get_y=lambda i: i % 3,
                      get_x=lambda i: PILImage.create(np.full((16, 16, 3), i*20, np.uint8)))
    photos = vision_learner(block.dataloaders('', bs=3, num_workers=0), 'resnet10t', pretrained=False, normalize=False)
    with photos.no_bar():
        theirs = ClassificationInterpretation.from_learner(photos)
        assert type(theirs) is ClassificationInterpretation and theirs.confusion_matrix().sum() == 6
    assert type(Interpretation.from_learner(photos)) is Interpretation
