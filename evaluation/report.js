"use strict";
// Some browsers, such as Safari on phones, play no video from a data URI, but all play one from memory.
for (const video of document.querySelectorAll("video")) {
  const [kind, data] = video.getAttribute("src").split(";base64,");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  video.src = URL.createObjectURL(new Blob([bytes], {type: kind.slice("data:".length)}));
  video.controls = false; // they cover a small video; the mouse, a finger and the tab key bring them back
  video.tabIndex = 0;
  video.onmouseenter = video.onfocus = () => { video.controls = true; };
  video.onmouseleave = video.onblur = () => { video.controls = false; };
}
for (const button of document.querySelectorAll("button")) {
  const videos = button.closest("section").querySelectorAll("video");
  button.hidden = false;
  button.onclick = () => {
    const play = [...videos].every((video) => video.paused);
    for (const video of videos) {
      if (play) { video.currentTime = 0; video.play(); } else { video.pause(); }
    }
    button.textContent = play ? "Pause all videos" : "Play all videos from the start";
  };
}
