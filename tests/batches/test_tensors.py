"Fields of view in a `DataBlock`, and many of them in threads."
import pickle

import pandas as pd
import torch

from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import RGBYBlock, TensorRGBY, read_images
from pictures import picture, write


def test_data_block_in_worker_processes(tmp_path):
    from fastai.vision.all import ColReader, DataBlock, MultiCategoryBlock, RandomSplitter, aug_transforms
    for i in range(8): write(tmp_path, picture(48), str(i))
    labels = pd.DataFrame(dict(Id=[str(i) for i in range(8)], Target=['0','1 2']*4))
    df = attach_images(labels, tmp_path)
    block = DataBlock(blocks=(RGBYBlock(32), MultiCategoryBlock), get_y=ColReader('Target', label_delim=' '),
                      splitter=RandomSplitter(.5, seed=0), batch_tfms=aug_transforms(size=24))
    dls = block.dataloaders(df, bs=2, num_workers=1)
    x,y = dls.one_batch()
    assert type(x) is TensorRGBY and x.shape==(2,4,24,24) and x.dtype==torch.float32 and 0<=x.min() and x.max()<=1
    new = pickle.loads(pickle.dumps(dls.new_empty())).test_dl(df.iloc[[5]], num_workers=0).one_batch()[0]
    assert new.shape==(1,4,24,24)


def test_read_images_stops_when_nobody_listens(tmp_path):
    for i in range(30): write(tmp_path, picture(16), f'{i:02}')
    seen = []
    class Counting(ImageReader):
        def array(self, row): seen.append(row['Id']); return super().array(row)
    stream = read_images(find_images(tmp_path), Counting(16), num_workers=2)
    next(stream)
    stream.close()
    assert 1 <= len(seen) <= 6
