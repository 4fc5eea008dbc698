"Submissions: every Id of the sample, in its order, and nothing else; decisions made anew from a table."
import numpy as np
import pandas as pd
import pytest

from hpa_fastai.data.labels import HPA19, HPA28, ZTG10
from hpa_fastai.deploy.scoring import decide_by_prevalence, known_prevalence, write_submission
from hpa_fastai.deploy.tables import ResultError
from hpa_fastai.evaluate.thresholds import plain_thresholds


@pytest.mark.parametrize(
    'labels, head, sep',
    [(HPA28, 'Id,Predicted', ' '), (HPA19, 'ID,Predicted', '|'), (HPA19, 'ID,Label', '|'), (ZTG10, 'Image,Label', ' ')],
)
def test_submissions_follow_the_sample(tmp_path, labels, head, sep):
    cell = sep.join('02')
    df = pd.DataFrame(
        [(i, cell, '', *[0.1] * len(labels), '', e) for i, e in [('10', ''), ('=2', ''), ('03', ''), ('7', 'broken')]],
        columns=['Id', 'Predicted', 'Names', *labels.classes, 'flags', 'error'],
    )
    (tmp_path/'sample.csv').write_text(head+'\n03,0\n7,0\n10,0\nunknown,0\n=2,0\n')
    with pytest.warns(UserWarning, match='2 of 5'):
        write_submission(df, tmp_path / 'sample.csv', tmp_path / 's.csv', labels)
    assert (tmp_path/'s.csv').read_text() == f'{head}\n03,{cell}\n7,\n10,{cell}\nunknown,\n=2,{cell}\n'
    with pytest.raises(ResultError, match='exists'):
        write_submission(df, tmp_path / 'sample.csv', tmp_path / 's.csv', labels)


@pytest.mark.parametrize(
    'text, words',
    [('Image,Class\n1,0\n', 'columns'), ('Id,Predicted\nzzz,0\n', 'none of its 1 Ids'), ('', 'not a sample')],
)
def test_a_wrong_sample_is_one_line(tmp_path, text, words):
    df = pd.DataFrame(
        [('1', '0', '', *[0.1] * 28, '', '')], columns=['Id', 'Predicted', 'Names', *HPA28.classes, 'flags', 'error']
    )
    (tmp_path/'sample.csv').write_text(text)
    with pytest.raises(ResultError, match=words) as e: write_submission(df, tmp_path/'sample.csv', tmp_path/'s.csv')
    assert '\n' not in str(e.value)


def test_every_id_of_the_competition_in_its_order(real_data, tmp_path):
    sample = real_data/'labels'/'kaggle2018_sample_submission.csv'
    ids = pd.read_csv(sample).Id
    df = pd.DataFrame({'Id': ids[::-1], 'Predicted': '3', 'error': ''})
    res = write_submission(df, sample, tmp_path/'s.csv')
    assert pd.read_csv(tmp_path/'s.csv').Id.tolist() == ids.tolist() and (res.Predicted == '3').all()


def test_how_often_classes_occur_is_known_or_not():
    "Of validation images first; of the images of 2018 for a published model of the 28 classes; else not at all"
    validated = dict(validation=dict(n_images=40), metrics=[dict(support=k) for k in range(28)])
    published = dict(published=dict(name='hpa-densenet121'), labels=dict(classes=list(HPA28.classes)))
    assert (known_prevalence({**validated, **published}) == np.arange(28)/40).all()
    of_2018 = known_prevalence({**published, 'validation': None, 'metrics': None})
    assert of_2018[[0, 25, 27]].round(4).tolist() == [.4147, .2648, .0004]
    others = dict(published, labels=dict(classes=list(HPA19.classes)))
    for config in ({}, others, {**published, 'published': None}, {**validated, 'validation': None}):
        assert known_prevalence(config) is None


def test_decisions_can_be_made_anew_as_often_as_one_likes():
    "Whatever stood there, from texts as from numbers; the rows of what could not be read stay"
    probs = np.random.default_rng(0).random((120, 10))
    table = pd.DataFrame(probs, columns=ZTG10.classes).assign(Id=[f'{k}' for k in range(120)], Predicted='', Names='',
                                                              flags='blank-protein uncertain', error='')
    table.loc[7, ['flags', 'error', *ZTG10.classes]] = ['', 'broken', *[np.nan]*10]
    share = np.linspace(0, .9, 10)
    with pytest.warns(UserWarning, match=f'1 classes are never given.*: {ZTG10.classes[0]}$'):
        anew = decide_by_prevalence(table, ZTG10, share, plain_thresholds(.5, 10))
    texts = anew.assign(**{c: anew[c].map(lambda v: '' if np.isnan(v) else repr(v)) for c in ZTG10.classes})
    with pytest.warns(UserWarning): again = decide_by_prevalence(texts, ZTG10, share, plain_thresholds(.9, 10))
    same = ['Predicted', 'Names', 'flags', 'error']
    assert again[same].equals(anew[same]) and anew.loc[7, 'Predicted'] == anew.loc[7, 'flags'] == ''
    given = ZTG10.encode(anew.Predicted.drop(7)).sum(0)
    assert (given == np.rint(share*119)).all() and anew['flags'].drop(7).str.startswith('blank-protein').all()
