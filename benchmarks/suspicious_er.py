"How well the likeness of red and yellow tells a right ER from one of another field."
import argparse
from pathlib import Path
import numpy as np
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.files import find_images
from hpa_fastai.data.verify import channel_correlation

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--real-data', required=True, type=Path, help='folder with mosaic/ and native/')
    args = parser.parse_args()
    for name in ('native', 'mosaic/images'):
        fields = [ImageReader(128).array(r) for r in find_images(args.real_data/name).to_dict('records')]
        right = [channel_correlation(x[0], x[3]) for x in fields]
        wrong = [channel_correlation(x[0], fields[(i+k)%len(fields)][3]) for i,x in enumerate(fields) for k in (1,2,3)]
        print(
            f'{name}: {len(right)} right pairs, lowest {min(right):.2f}, median {np.median(right):.2f}; {len(wrong)} '
            f'wrong pairs, median {np.median(wrong):.2f}, highest {max(wrong):.2f}; '
            f'below 0.4: {np.mean(np.array(right) < 0.4):.1%} of the right, {np.mean(np.array(wrong) < 0.4):.1%} of '
            'the wrong'
        )

if __name__ == '__main__': main()
