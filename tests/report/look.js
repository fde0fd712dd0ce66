// Runs in a page around the report, which forbids scripts itself: what is seen in frames of several widths.
const colour = text => text.match(/[\d.]+/g).map(Number);

function luminance(channels) {
  const linear = channels.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function behind(element) {
  for (; element; element = element.parentElement) {
    const [red, green, blue, alpha = 1] = colour(getComputedStyle(element).backgroundColor);
    if (alpha === 1) return [red, green, blue];
  }
  return [127, 127, 127];  // nothing stands out from it
}

function contrast(element) {
  const style = getComputedStyle(element);
  const front = colour(element.closest('svg') ? style.fill : style.color).slice(0, 3);
  const [high, low] = [front, behind(element)].map(luminance).sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

function isHidden(drawing) {
  const box = drawing.getBoundingClientRect();
  return box.width < 20 || box.height < 20 || (drawing.tagName === 'IMG' && !(drawing.complete && drawing.naturalWidth));
}

function isText(element) {
  if (['title', 'desc'].includes(element.tagName)) return false;
  return [...element.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.textContent.trim());
}

function look(frame) {
  const page = frame.contentDocument;
  for (const closed of page.querySelectorAll('details')) closed.open = true;
  const drawings = [...page.querySelectorAll('img, svg')];
  const texts = [...page.querySelectorAll('body *')].filter(isText);
  const small = texts.filter(at => !at.closest('svg') && parseFloat(getComputedStyle(at).fontSize) < 11);
  const shown = elements => elements.map(at => `${at.tagName} ${at.textContent.slice(0, 40)} ${contrast(at).toFixed(2)}`);
  return {
    drawings: drawings.length,
    texts: texts.length,
    hidden: drawings.filter(isHidden).length,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    faint: shown(texts.filter(at => contrast(at) < 4.5)),
    small: shown(small),
    background: behind(page.body),
  };
}

onload = () => setTimeout(() => {
  const found = [...document.querySelectorAll('iframe')].map(frame => [frame.clientWidth, look(frame)]);
  document.getElementById('found').textContent = JSON.stringify(Object.fromEntries(found));
}, 300);
