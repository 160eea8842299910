// Hanging protocol of the reading page for OHIF: source beside result at one slice, with the segmentation on it.
// The address names the series: #layout=LEFT,RIGHT,SEGMENTATION,SLICE with UIDs of series and an index from 0. The last
// two may be empty.
const dicomnodeLayout = (() => {
  const [left, right, mask, slice] = (location.hash.match(/layout=([0-9.,]+)/)?.[1] ?? "").split(",");
  const select = (uid) => ({
    seriesMatchingRules: [{ attribute: "SeriesInstanceUID", constraint: { equals: { value: uid } }, required: true }],
  });
  const viewport = (id, overlays) => ({
    viewportOptions: {
      viewportId: id,
      viewportType: "stack",
      toolGroupId: "default",
      initialImageOptions: slice ? { index: Number(slice), useOnce: true } : { preset: "middle", useOnce: true },
      syncGroups: [{ type: "imageSlice", id: "dicomnodeSlices", source: true, target: true }],
    },
    displaySets: [{ id }, ...overlays],
  });
  const selectors = Object.fromEntries(
    Object.entries({ left, right, mask }).filter(([, uid]) => uid).map(([id, uid]) => [id, select(uid)]),
  );
  const overlays = mask ? [{ id: "mask" }] : [];
  return {
    id: "@dicomnode/reading",
    name: "Source beside result",
    protocolMatchingRules: [],
    toolGroupIds: ["default"],
    numberOfPriorsReferenced: 0,
    displaySetSelectors: selectors,
    stages: [{
      name: "source beside result",
      viewportStructure: { layoutType: "grid", properties: { rows: 1, columns: 2 } },
      viewports: [viewport("left", []), viewport("right", overlays)],
    }],
  };
})();

/** Leave reports of this node out of the list of series: OHIF shows a black pane for measurements of segments. */
function hideReports({ displaySetsAdded }) {
  for (const each of displaySetsAdded) {
    if (each.Modality === "SR" && each.SeriesDescription?.startsWith("SYN ")) each.excludeFromThumbnailBrowser = true;
  }
}

window.config.extensions.push({
  id: "@dicomnode/extension-reading",
  getHangingProtocolModule: () => [{ name: dicomnodeLayout.id, protocol: dicomnodeLayout }],
  onModeEnter({ servicesManager }) {
    const { displaySetService } = servicesManager.services;
    displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, hideReports);
  },
});
