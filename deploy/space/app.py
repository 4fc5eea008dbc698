"The app as a Hugging Face Space; the same as `hpa_fastai app --host 0.0.0.0 --port 7860 --no-browser`."
from pathlib import Path

from hpa_fastai.app.page import open_app

if __name__ == '__main__':
    own = Path(__file__).parent/'model'  # the folder of `learn.save_bundle`, if it was put here
    open_app(model=own if own.is_dir() else None, host='0.0.0.0', port=7860, browser=False)
