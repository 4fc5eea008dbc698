"In the cleaner no choice is lost, whatever is shown next, and what is saved are corrections."
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hpa_fastai.all import HPA28, HPADataLoaders, HPAError, hpa_learner
from hpa_fastai.app import cleaner as module
from hpa_fastai.app.cleaner import KEEP, LEAVE_OUT, HPACleaner, JudgedPart
from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.corrections import CORRECTION_COLUMNS, Corrections, merge_corrections
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.experiments.active_learning import uncertainty

pytest.importorskip('ipywidgets')


@pytest.fixture
def cleaner(trained): return HPACleaner(trained[0], size=32, per_page=5, user='ann', model='abc')


def first(cleaner): return next(iter(cleaner.cards.values()))


def a_new_class(card): return next(c for c in card.shown if c not in card.cleaner.classes_of(card.Id, card.given))


def flip(card):
    "Give an image one class more, and say its number"
    c = a_new_class(card)
    card.boxes[c].value = True
    return c


def test_a_choice_survives_another_category_part_order_and_page(cleaner):
    card = first(cleaner)
    Id, c = card.Id, flip(card)
    cleaner.category.value = int(np.flatnonzero(~card.given)[-1])
    cleaner.category.value = None
    assert cleaner.cards[Id].boxes[c].value is True
    cleaner.part.value = 'train'
    other = flip(first(cleaner))
    there = first(cleaner).Id
    cleaner.page.value = 2
    assert Id not in cleaner.cards and there not in cleaner.cards
    cleaner.order.value = 'uncertain'
    cleaner.order.value = 'loss'
    assert cleaner.page.value == 1 and cleaner.cards[there].boxes[other].value is True
    cleaner.part.value = 'valid'
    assert cleaner.cards[Id].boxes[c].value is True
    assert set(cleaner.corrections().Id) == {Id, there}


def test_left_out_survives_too_and_can_be_taken_back(cleaner):
    Id = first(cleaner).Id
    cleaner.cards[Id].keep.value = LEAVE_OUT
    cleaner.part.value = 'train'
    cleaner.part.value = 'valid'
    assert cleaner.cards[Id].keep.value == LEAVE_OUT and cleaner.left_out() == [Id]
    cleaner.cards[Id].keep.value = KEEP
    assert cleaner.left_out() == [] and cleaner.corrections().empty


def test_every_part_and_class_shows_what_was_given_or_predicted(cleaner, trained):
    for name, dl in dict(valid=trained[0].dls.valid, train=trained[0].dls.train).items():
        cleaner.part.value = name
        part = cleaner.judge(name)
        assert part.items.Id.tolist() == dl.dataset.items.Id.tolist()
        assert len(cleaner.rows()) == len(part.items) and len(cleaner.cards) == 5
        for c in (0, 25):
            cleaner.category.value = c
            rows = cleaner.rows()
            assert sorted(rows) == np.flatnonzero(part.given[:, c] | part.predicted[:, c]).tolist()
            for card in cleaner.cards.values(): assert c in card.boxes
        cleaner.category.value = None


def test_probabilities_are_those_of_the_learner(cleaner, trained):
    learn = trained[0]
    with learn.no_bar(): probs, _, decided = learn.get_preds(with_decoded=True)
    part = cleaner.judge('valid')
    assert np.allclose(part.probs, probs.numpy(), atol=1e-5)
    assert (part.predicted == (decided.numpy() > .5)).all()


def test_the_highest_loss_comes_first_or_the_least_certain(cleaner, trained):
    part = cleaner.judge('valid')
    loss = -np.log(np.where(part.given, part.probs, 1 - part.probs).clip(1e-7)).sum(1)
    assert (np.diff(loss[part.orders['loss']]) <= 1e-9).all()
    assert [card.Id for card in cleaner.cards.values()] == part.items.Id.iloc[part.orders['loss'][:5]].tolist()
    cleaner.order.value = 'uncertain'
    doubt = uncertainty(part.probs, trained[0].thresholds)
    assert (np.diff(doubt[part.orders['uncertain']]) <= 0).all()


def test_a_head_is_judged_by_heads_that_have_not_seen_the_image(small_atlas, tmp_path):
    df = read_labels(small_atlas/'train.csv')
    dls = HPADataLoaders.from_df(df, small_atlas/'train', size=32, bs=16, group=False, cache=tmp_path/'cache',
                                 progress=False)
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), fine_tune=False, verbose=False)
    part, scores = JudgedPart.of(learn, dls.train_ds.items), learn.out_of_fold
    rows = pd.Index(scores.items.Id).get_indexer(part.items.Id)
    assert np.allclose(part.probs, learn.probabilities(scores.logits[rows]).numpy())


def test_a_class_from_the_list_gets_a_box(cleaner):
    card = first(cleaner)
    c = next(c for c in range(28) if c not in card.boxes)
    card.another.value = c
    assert card.boxes[c].value is True and card.boxes[c] in card.column.children
    assert c not in [value for _, value in card.another.options] and card.another.value == -1
    assert HPA28.classes[c] in HPA28.to_names(HPA28.encode(cleaner.corrections().Target))[0]


def test_no_class_is_no_correction(cleaner):
    card = first(cleaner)
    for c in np.flatnonzero(card.given): card.boxes[c].value = False
    assert cleaner.corrections().empty and '1 without any class' in cleaner.status.value
    cleaner.cards[card.Id].keep.value = LEAVE_OUT
    assert 'without any class' not in cleaner.status.value


def test_a_choice_that_was_taken_back_is_no_correction(cleaner):
    card = first(cleaner)
    c = flip(card)
    assert '1 corrected' in cleaner.status.value
    card.boxes[c].value = False
    assert cleaner.corrections().empty and '0 corrected' in cleaner.status.value


def test_negative_stands_alone(cleaner, monkeypatch):
    card = first(cleaner)
    c, alone = np.flatnonzero(card.given)[0], a_new_class(card)
    monkeypatch.setattr(cleaner, 'labels', replace(HPA28, negative=int(alone)))
    card.boxes[alone].value = True
    assert cleaner.choices[card.Id] == {alone} and card.boxes[c].value is False
    card.boxes[c].value = True
    assert cleaner.choices[card.Id] == {c} and card.boxes[alone].value is False


def test_the_table_is_one_of_corrections(cleaner, small_atlas):
    card = first(cleaner)
    c = flip(card)
    table = cleaner.corrections()
    assert tuple(table.columns) == CORRECTION_COLUMNS and table.user[0] == 'ann' and table.model[0] == 'abc'
    df, report = merge_corrections(read_labels(small_atlas/'train.csv'), table, HPA28)
    assert report.n_changed == 1 and report.gained == {HPA28.classes[c]: 1}
    assert HPA28.encode([table.previous[0]])[0].tolist() == card.given.astype(int).tolist()


def test_saving_adds_each_choice_once(cleaner, tmp_path):
    file = tmp_path/'corrections.csv'
    card = first(cleaner)
    c = flip(card)
    assert cleaner.save(file) == 1 and cleaner.save(file) == 0
    more = next(o for o in range(28) if o not in card.boxes)
    card.another.value = more
    assert cleaner.save(file) == 1 and len(Corrections(file, HPA28).table()) == 2
    assert HPA28.encode(Corrections(file, HPA28).current().Target)[0, [c, more]].tolist() == [1, 1]
    for o in (c, more): card.boxes[o].value = False
    assert cleaner.save(file) == 1 and cleaner.save(file) == 0
    stands = Corrections(file, HPA28).current()
    assert (HPA28.encode(stands.Target)[0] == card.given).all() and (stands.user == 'ann').all()


def test_what_could_not_be_saved_is_saved_the_next_time(cleaner, tmp_path, monkeypatch):
    cards = list(cleaner.cards.values())
    for card in cards[:2]: flip(card)
    add = Corrections.add
    def once(self, Id, *args):
        if Id == cards[1].Id: raise HPAError('the disk is full')
        add(self, Id, *args)
    monkeypatch.setattr(Corrections, 'add', once)
    with pytest.raises(HPAError, match='full'): cleaner.save(tmp_path/'c.csv')
    monkeypatch.setattr(Corrections, 'add', add)
    assert cleaner.save(tmp_path/'c.csv') == 1
    assert Corrections(tmp_path/'c.csv', HPA28).table().Id.tolist() == [card.Id for card in cards[:2]]


def test_ten_thousand_images_are_predicted_once_and_drawn_page_by_page(trained, monkeypatch):
    learn, calls, drawn = trained[0], [], []
    some, n = learn.dls.valid_ds.items, 10_000
    items = pd.concat([some]*(n//len(some) + 1), ignore_index=True)[:n]
    items = items.assign(Id=[f'image{i}' for i in range(n)])
    monkeypatch.setattr(learn.dls.valid.dataset, 'items', items)
    monkeypatch.setattr(type(learn.dls.valid.dataset), '__len__', lambda self: len(self.items))
    probs = np.random.default_rng(0).random((n, 28)).astype(np.float32)
    monkeypatch.setattr(learn.dls, 'test_dl', lambda items, **options: items)
    monkeypatch.setattr(learn, 'get_preds', lambda **options: calls.append(1) or (torch.from_numpy(probs), None))
    cleaner = HPACleaner(learn, size=16, per_page=30)
    monkeypatch.setattr(cleaner, 'picture', lambda item: drawn.append(item.Id) or b'')
    assert cleaner.page.max == 334 and len(cleaner.cards) == 30
    for page in (2, 334): cleaner.page.value = page
    assert len(drawn) == 30 + 10 and calls == [1]
    cleaner.category.value = 3
    cleaner.order.value = 'uncertain'
    assert len(drawn) == 100 and calls == [1]


def test_widgets_of_other_pages_are_freed(cleaner):
    from ipywidgets import Widget
    n_widgets = lambda: len(getattr(sys.modules[Widget.__module__], '_instances'))
    cleaner.page.value = 2
    before = n_widgets()
    for page in (1, 2, 1, 2): cleaner.page.value = page
    assert n_widgets() <= before + 20


def test_pictures_are_those_of_the_images(cleaner):
    card = first(cleaner)
    assert Image.open(BytesIO(card.picture.value)).size == (32, 32)
    part = cleaner.judge('valid')
    row = part.items[part.items.Id == card.Id].iloc[0]
    assert card.picture.value == cleaner.picture(row)


def test_an_image_that_cannot_be_read_is_said_on_its_card(cleaner, monkeypatch):
    def broken(item): raise ImageError('<b>broken</b>', Id=item.Id)
    monkeypatch.setattr(cleaner, 'picture', broken)
    cleaner.draw()
    card = first(cleaner)
    assert '&lt;b&gt;broken' in card.picture.value and card.Id in cleaner.static_html()
    flip(card)
    assert len(cleaner.corrections()) == 1


def test_names_are_text_in_html(cleaner):
    part = cleaner.judge('valid')
    items = part.items.assign(Id='<script>alert(1)</script>\x1b[2J')
    card = module.Card(cleaner, replace(part, items=items), 0)
    assert '<script' not in card.text.value and '&lt;script' in card.text.value and '\x1b' not in card.text.value


def test_a_missing_package_is_one_line(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(HPAError, match=r"ipywidgets: pip install 'hpa_fastai\[app\]'") as e: HPACleaner(trained[0])
    assert '\n' not in str(e.value)


def test_other_learners_are_refused(trained, tmp_path):
    from fastai.learner import load_learner
    trained[0].export(tmp_path/'export.pkl')
    with pytest.raises(HPAError, match='this learner has no images'): HPACleaner(load_learner(tmp_path/'export.pkl'))


def test_a_page_without_python_shows_pictures_and_texts(cleaner):
    bundle = cleaner._repr_mimebundle_()
    assert 'application/vnd.jupyter.widget-view+json' in bundle
    assert bundle['text/html'].count('<img src="data:image/png;base64,') == 5
    assert all(card.Id in bundle['text/html'] for card in cleaner.cards.values())
