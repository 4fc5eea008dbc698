"Submissions: every Id of the sample, in its order, and nothing else."
import pandas as pd
import pytest

from hpa_fastai.data.labels import HPA19, HPA28, ZTG10
from hpa_fastai.deploy.scoring import write_submission
from hpa_fastai.deploy.tables import ResultError


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
