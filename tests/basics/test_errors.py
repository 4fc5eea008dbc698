"What is printed about names that come from elsewhere is text alone."
import warnings

import pytest

from hpa_fastai.basics.errors import HPAError, ImageError, printable, warn_user

HOSTILE = '\x1b]0;owned\x07 \x9b2J gpj.\u202eexe \u2066a\u2069 b\rc \u2028d'
AS_TEXT = r'\x1b]0;owned\x07 \x9b2J gpj.\u202eexe \u2066a\u2069 b\rc \u2028d'


def test_characters_that_a_terminal_obeys_are_spelled_out():
    assert printable(HOSTILE) == AS_TEXT
    assert printable('Golgi, Zürich 細胞 👩‍🔬\n\tß') == 'Golgi, Zürich 細胞 👩‍🔬\n\tß'


@pytest.mark.parametrize('error', [HPAError(HOSTILE), ImageError('why', file=HOSTILE), ImageError(HOSTILE, Id='a')])
def test_errors_show_them_as_text(error):
    assert AS_TEXT in str(error) and '\x1b' not in str(error)


def test_warnings_show_them_as_text():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        warn_user(HOSTILE)
    assert str(heard[0].message) == AS_TEXT


@pytest.mark.parametrize('error', [HPAError('a.png: cut off'), ImageError('cut off', file='a.png'),
                                   ImageError('cut off', 'truncated', 'a.png', channel='red')])
def test_an_error_of_a_loading_process_stays_one_line(error):
    from torch.utils.data import DataLoader

    class Pictures(list):
        def __getitem__(self, i): raise error
    with pytest.raises(type(error)) as said: list(DataLoader(Pictures([1]), num_workers=1))
    assert str(said.value) == 'a.png: cut off'
